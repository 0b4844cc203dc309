"""Measures candidates within the budgets, and keeps the best."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, LightenError
from lighten_service.techniques.base import NotApplicable
from lighten_service.worker.algorithms.fidelity import sqnr_db, tune
from lighten_service.worker.context import StepContext
from lighten_service.worker.errors import to_job_error
from lighten_service.worker.guide.diagnosis import TUNED
from lighten_service.worker.guide.plans import Candidate
from lighten_service.worker.guide.report import figures
from lighten_service.worker.guide.target import Target
from lighten_service.worker.guide.tree import Branch, Tree
from lighten_service.worker.guide.trial import OutOfTime, TrialContext
from lighten_service.worker.judge import Judge
from lighten_service.worker.model import ModelStatistics, WorkingModel

_SLACK_DB: Final = 1.0
# Characters of a reason in an event, which may name every layer; the result has all of it.
_MAX_FAILURE: Final = 2000
# Bytes of a plan in an event, of which at most 16 KiB are kept.
_LARGEST_PLAN: Final = 8 * 1024
_OUT_OF_TIME: Final = "the time budget ended before it was measured"


class Stop(Exception):
    """No more candidates are to be tried."""

    def __init__(self, reason: pb.StopReason.ValueType) -> None:
        super().__init__(pb.StopReason.Name(reason))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Budget:
    """``deadline``: of `time.monotonic`; ``trials``: candidates to measure."""

    began: float
    deadline: float
    trials: int

    def share(self, trials: int) -> float:
        """Return how much of it is spent, 0 to 1."""
        time = (monotonic() - self.began) / (self.deadline - self.began)
        return min(max(time, trials / self.trials), 1.0)


@dataclass(frozen=True, slots=True)
class Known:
    """A candidate's figures from before the search."""

    metrics: Sequence[pb.MetricValue]
    statistics: ModelStatistics


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was measured. ``tuned_db``: SQNR on calibration samples, in dB."""

    candidate: Candidate
    report: pb.TrialReport
    statistics: ModelStatistics
    tuned_db: float


@dataclass
class Search:
    """The state of a search. ``trials`` has every candidate in order, failed ones too."""

    context: StepContext
    tree: Tree
    judge: Judge
    target: Target
    budget: Budget
    # Bit operations that mixed precision may spend at most, relative to the plan's own types.
    limit_bops_ratio: float = 1.0
    trials: list[pb.TrialReport] = field(default_factory=list)
    # Of the trials that could be measured, by name.
    measured: dict[str, Trial] = field(default_factory=dict)
    explanation: list[str] = field(default_factory=list)
    _best: Trial | None = None
    _seen: set[bytes] = field(default_factory=set)

    @property
    def best(self) -> Trial:
        """The best trial so far; there is one after `begin`."""
        if self._best is None:
            raise AssertionError("no candidate was measured yet")
        return self._best

    @property
    def seconds_left(self) -> float:
        return max(self.budget.deadline - monotonic(), 0.0)

    def say(self, sentence: str) -> None:
        """Add a sentence to the explanation, and to the log."""
        self.explanation.append(sentence)
        self.context.log(sentence)

    def begin(self, naive: Candidate, known: Known | None) -> None:
        """Measure the first candidate. The time budget does not stop it: without it there is no
        result.

        Raises:
            Stop: GOAL_MET.
            LightenError, Cancelled: what its steps raise.
        """
        self._seen.add(naive.key)
        context = self._trial_context(naive, within_time=False)
        began = monotonic()
        trial = self._measure(context, naive, known)
        self._finish(trial, monotonic() - began)

    def consider(self, candidate: Candidate) -> None:
        """Measure a candidate, and keep it if it is better than the best. Its failure is recorded,
        and costs nothing else; one that was measured before is passed over.

        Raises:
            Stop: a budget is spent, or the goal is met.
            Cancelled: the job shall stop.
        """
        if candidate.key in self._seen:
            return
        self._check_budget()
        self._seen.add(candidate.key)
        began = monotonic()
        try:
            trial = self._measure(self._trial_context(candidate), candidate, None)
        except OutOfTime:
            self._fail(candidate, _OUT_OF_TIME, monotonic() - began)
        except Exception as error:  # whatever breaks here must not cost the best so far
            self._fail(candidate, self.reason(error), monotonic() - began)
        else:
            self._finish(trial, monotonic() - began)
        finally:
            self.tree.keep(self.best.candidate.plan)

    def conclude(self, title: str, before: Trial) -> None:
        """Say what came of a decision that began with ``before`` as the best."""
        metric, best = self.target.metric, self.best
        had = figures(metric, before.report.metrics)
        if best is before:
            self.say(f"{title}: nothing was better than {before.candidate.name} ({had}).")
        else:
            found = figures(metric, best.report.metrics)
            self.say(f"{title}: {best.candidate.name} is better ({found}; before {had}).")

    @contextmanager
    def inspect(self) -> Iterator[tuple[StepContext, WorkingModel]]:
        """Give the best model, to be looked at within the time budget and left as it is.

        Raises:
            Stop: TIME_BUDGET.
        """
        context = self._trial_context(self.best.candidate)
        try:
            yield context, self.tree.simulated(context, self.best.candidate.plan).model
        except OutOfTime:
            raise Stop(pb.STOP_REASON_TIME_BUDGET) from None

    def take(self) -> Branch:
        """Return the best model, and free everything else."""
        context = self._trial_context(self.best.candidate, within_time=False)
        return self.tree.take(context, self.best.candidate.plan)

    def _measure(self, context: TrialContext, candidate: Candidate, known: Known | None) -> Trial:
        plan = candidate.plan
        self._check_float(context, candidate)
        model = self.tree.simulated(context, plan).model
        if known is None:
            total = self.judge.evaluation.count
            evaluation = self.judge.evaluate(
                model.predict, lambda done: context.progress(done, total, "samples")
            )
            known = Known(evaluation.metric_values(), self._statistics(candidate, model))
        report = pb.TrialReport(
            name=candidate.name,
            description=candidate.description,
            plan=plan,
            metrics=known.metrics,
            bops=known.statistics.bops,
            weight_bytes=known.statistics.weight_bytes,
            met=self.target.met(known.metrics),
        )
        self.target.found(known.metrics)
        return Trial(candidate, report, known.statistics, sqnr_db(tune(context, model, TUNED)))

    def _check_float(self, context: TrialContext, candidate: Candidate) -> None:
        """Refuse a candidate whose float steps alone cost more than the best loses by all."""
        if self._best is None or candidate.float_steps == self._best.candidate.float_steps:
            return
        model = self.tree.float(context, candidate.plan).model
        found = sqnr_db(tune(context, model, TUNED))
        # Errors of the float steps and of quantization can cancel a little.
        if found < self.best.tuned_db - _SLACK_DB:
            raise FailedPrecondition(
                "NOT_PROMISING",
                f"not quantized: its float model alone is at {found:.1f} dB, and the best "
                f"quantized one at {self.best.tuned_db:.1f} dB",
            )

    def _statistics(self, candidate: Candidate, model: WorkingModel) -> ModelStatistics:
        """Return bit operations and bytes, which depend on nothing but types."""
        for trial in self.measured.values():
            if trial.candidate.types == candidate.types:
                return trial.statistics
        return model.statistics()

    def _finish(self, trial: Trial, seconds: float) -> None:
        trial.report.seconds = seconds
        self.trials.append(trial.report)
        self.measured[trial.candidate.name] = trial
        best = self._best is None or self._better(trial, self._best)
        if best:
            self._best = trial
        self._tell(trial.report, best=best)
        if trial.report.met:
            raise Stop(pb.STOP_REASON_GOAL_MET)

    def _fail(self, candidate: Candidate, reason: str, seconds: float) -> None:
        report = pb.TrialReport(
            name=candidate.name,
            description=candidate.description,
            plan=candidate.plan,
            failure=reason,
            seconds=seconds,
        )
        self.trials.append(report)
        self._tell(report, best=False)

    def _tell(self, report: pb.TrialReport, *, best: bool) -> None:
        told = pb.TrialReport()
        told.CopyFrom(report)
        if not best or report.plan.ByteSize() > _LARGEST_PLAN:
            told.ClearField("plan")
        told.failure = told.failure[:_MAX_FAILURE]
        self.context.trial_finished(pb.TrialFinished(trial=told, best=best))

    def _better(self, trial: Trial, other: Trial) -> bool:
        """Whether a trial is better by the goal's metric, or by SQNR where that cannot tell."""
        gain = self.target.gain(trial.report.metrics, other.report.metrics)
        return gain > 0 or (gain == 0 and trial.tuned_db > other.tuned_db)

    def _check_budget(self) -> None:
        if not self.seconds_left:
            raise Stop(pb.STOP_REASON_TIME_BUDGET)
        if len(self.measured) >= self.budget.trials:
            raise Stop(pb.STOP_REASON_TRIAL_BUDGET)

    def _trial_context(self, candidate: Candidate, *, within_time: bool = True) -> TrialContext:
        shares = (self.budget.share(len(self.measured) + more) for more in (0, 1))
        outer = self.context.part(*shares)
        fields = {name: getattr(outer, name) for name in StepContext.__dataclass_fields__}
        fields |= {"trial": candidate.name, "warnings": []}
        if within_time:
            fields["deadline"] = self.budget.deadline
        return TrialContext(**fields)

    def reason(self, error: Exception) -> str:
        """Return what to say of an error, for a person."""
        if isinstance(error, NotApplicable | LightenError):
            return str(error)
        return to_job_error(error, self.context.stage).message
