"""What a live view knows of a job: a snapshot, and every event since."""

from dataclasses import dataclass, field
from enum import Enum

from lighten import v1 as pb
from lighten.cli.render.text import stage_name

_BEFORE_STEPS = (
    pb.Stage.KIND_FETCH,
    pb.Stage.KIND_LOAD,
    pb.Stage.KIND_PREPARE,
    pb.Stage.KIND_BASELINE,
)
_AFTER_STEPS = (
    pb.Stage.KIND_EVALUATE,
    pb.Stage.KIND_EXPORT,
    pb.Stage.KIND_VERIFY,
    pb.Stage.KIND_PUBLISH,
)


class StageStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class StageProgress:
    """One line of the view. ``done`` and ``total`` count ``unit``; a total of 0 is not known."""

    name: str
    status: StageStatus = StageStatus.WAITING
    title: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0
    summary: str = ""
    # Candidate for the goal that is under way.
    trial: str = ""


@dataclass(slots=True)
class JobProgress:
    """The state of a live view. ``fraction`` is the share of the whole job, 0 to 1."""

    name: str = ""
    state: pb.JobState.ValueType = pb.JOB_STATE_UNSPECIFIED
    reason: str = ""
    attempt: int = 0
    fraction: float = 0.0
    eta_seconds: float | None = None
    stages: dict[str, StageProgress] = field(default_factory=dict)
    # Newest value by column ("baseline", "naive", "optimized" or a step's id) and metric.
    metrics: dict[tuple[str, pb.Metric.ValueType], pb.MetricValue] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    # Candidates for the goal that were measured, and the name of the best.
    trials: list[pb.TrialReport] = field(default_factory=list)
    best_trial: str = ""

    def plan(self, job: pb.Job) -> None:
        """Take the stages to come from a job in the FULL view."""
        self.name = job.name
        if not self.stages:
            self._plan_stages(job)

    def apply(self, event: pb.JobEvent) -> None:
        """Take one event."""
        if event.attempt > self.attempt:
            self._begin_attempt(event.attempt)
        match event.WhichOneof("payload"):
            case "state_changed":
                self._change_state(event.state_changed)
            case "stage_started":
                self._stage(event.stage).status = StageStatus.RUNNING
                self._stage(event.stage).title = event.stage_started.title
            case "stage_finished":
                self._finish(self._stage(event.stage), event.stage_finished)
            case "progress":
                stage = self._stage(event.stage)
                stage.trial = event.trial
                self._progress(stage, event.progress)
            case "metric":
                key = (event.metric.column, event.metric.value.metric)
                self.metrics[key] = event.metric.value
            case "warning":
                self.warnings.append(event.warning.message)
            case "trial_finished":
                self.trials.append(event.trial_finished.trial)
                if event.trial_finished.best:
                    self.best_trial = event.trial_finished.trial.name

    def _plan_stages(self, job: pb.Job) -> None:
        spec = job.resolved_spec
        skipped = set() if spec.outputs.verify else {pb.Stage.KIND_VERIFY}
        stages = [pb.Stage(kind=kind) for kind in _BEFORE_STEPS]
        stages += [
            pb.Stage(kind=pb.Stage.KIND_STEP, step_id=step.id) for step in spec.plan.steps.steps
        ]
        if spec.plan.HasField("goal"):
            stages.append(pb.Stage(kind=pb.Stage.KIND_GUIDE))
        stages += [pb.Stage(kind=kind) for kind in _AFTER_STEPS if kind not in skipped]
        for stage in stages:
            self._stage(stage)

    def _begin_attempt(self, attempt: int) -> None:
        """Forget what a lost attempt did; its work is done again."""
        if self.attempt:
            self.fraction, self.eta_seconds = 0.0, None
            self.metrics.clear()
            self.trials.clear()
            self.best_trial = ""
            for name in self.stages:
                self.stages[name] = StageProgress(name)
        self.attempt = attempt

    def _change_state(self, change: pb.StateChanged) -> None:
        self.state, self.reason = change.to, change.reason
        self.eta_seconds = None
        if change.to == pb.JOB_STATE_SUCCEEDED:
            self.fraction = 1.0
        elif change.to in (pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED):
            for stage in self.stages.values():
                if stage.status is StageStatus.RUNNING:
                    stage.status = StageStatus.FAILED

    def _stage(self, stage: pb.Stage) -> StageProgress:
        name = stage_name(stage)
        return self.stages.setdefault(name, StageProgress(name))

    def _progress(self, stage: StageProgress, progress: pb.Progress) -> None:
        stage.done, stage.total, stage.unit = progress.done, progress.total, progress.unit
        self.fraction = max(self.fraction, progress.fraction)
        self.eta_seconds = progress.eta_seconds if progress.HasField("eta_seconds") else None

    @staticmethod
    def _finish(stage: StageProgress, finished: pb.StageFinished) -> None:
        stage.status = StageStatus.DONE
        stage.seconds, stage.summary = finished.seconds, finished.summary
