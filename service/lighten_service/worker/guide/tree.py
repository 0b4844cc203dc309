"""Runs candidates without doing anything twice that two of them share.

Plans that begin with the same steps on the float model share a copy of it. Plans that are the same
up to calibration share a simulation, which later steps take from one state to another: what it was
before them is kept, and given back for the next plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from lighten import v1 as pb
from lighten_service.techniques import run_step
from lighten_service.worker.context import StepContext
from lighten_service.worker.guide.plans import Key, keys_of, prefixes, split
from lighten_service.worker.model import WorkingModel


@dataclass(frozen=True, slots=True)
class StepRun:
    """A step that was run, and what it found."""

    report: pb.StepReport
    data: Mapping[str, object]
    warnings: tuple[pb.Warning, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A model, and the steps that made it."""

    model: WorkingModel
    runs: tuple[StepRun, ...]


RunOne = Callable[[WorkingModel, pb.Step], StepRun]


class Tree:
    """Models of candidates. Owns the root, and every model that it makes until `take`."""

    def __init__(self, root: WorkingModel) -> None:
        self._floats: dict[Key, Branch] = {(): Branch(root, ())}
        self._simulations: dict[Key, _Simulation] = {}

    def float(self, context: StepContext, plan: pb.Plan) -> Branch:
        """Return the float model of a plan, before calibration; not to be changed.

        Raises:
            NotApplicable, LightenError, Cancelled: what the steps raise.
        """
        before, _, _ = split(plan)
        return self._float(before, _runner(context, plan))

    def simulated(self, context: StepContext, plan: pb.Plan) -> Branch:
        """Return the quantized model of a plan; as it is until the next call.

        Raises:
            NotApplicable, LightenError, Cancelled: what the steps raise.
        """
        before, calibrate, after = split(plan)
        run = _runner(context, plan)
        key = _simulation_key(plan)
        if key not in self._simulations:
            branch = self._float(before, run)
            self._simulations[key] = _Simulation(_extended(branch, calibrate, run))
        return self._simulations[key].bring(after, run)

    def keep(self, plan: pb.Plan) -> None:
        """Free everything but what a plan is made of."""
        before, _, after = split(plan)
        wanted = _simulation_key(plan)
        for key in [key for key in self._simulations if key != wanted]:
            self._simulations.pop(key).close()
        if wanted in self._simulations:
            self._simulations[wanted].prune(after)
        steps = set(prefixes(keys_of(before)))
        for key in [key for key in self._floats if key not in steps]:
            self._floats.pop(key).model.close()

    def take(self, context: StepContext, plan: pb.Plan) -> Branch:
        """Return the quantized model of a plan for the caller to own, and free everything else."""
        branch = self.simulated(context, plan)
        self._simulations.pop(_simulation_key(plan))
        self.close()
        return branch

    def close(self) -> None:
        """Free every model, the root too."""
        for simulation in self._simulations.values():
            simulation.close()
        for branch in self._floats.values():
            branch.model.close()
        self._simulations.clear()
        self._floats.clear()

    def _float(self, steps: Sequence[pb.Step], run: RunOne) -> Branch:
        key = keys_of(steps)
        if key not in self._floats:
            parent = self._float(steps[:-1], run)
            self._floats[key] = _extended(parent, steps[-1], run)
        return self._floats[key]


class _Simulation:
    """A calibrated model, and the states that later steps brought it to."""

    def __init__(self, calibrated: Branch) -> None:
        self._model = calibrated.model
        self._runs: dict[Key, tuple[StepRun, ...]] = {(): calibrated.runs}
        self._snapshots: dict[Key, object] = {}
        # None while a step runs, and after one that failed.
        self._at: Key | None = ()

    def bring(self, steps: Sequence[pb.Step], run: RunOne) -> Branch:
        """Bring the model to the state after these steps."""
        keys = keys_of(steps)
        if self._at != keys:
            self._save()
            ready = next(state for state in prefixes(keys) if state in self._snapshots)
            self._restore(ready)
            for count in range(len(ready), len(keys)):
                self._advance(keys[: count + 1], steps[count], run)
        return Branch(self._model, self._runs[keys])

    def prune(self, steps: Sequence[pb.Step]) -> None:
        """Forget every state but those on the way to these steps."""
        wanted = set(prefixes(keys_of(steps)))
        for state in [state for state in self._snapshots if state not in wanted]:
            del self._snapshots[state]

    def close(self) -> None:
        self._snapshots.clear()
        self._model.close()

    def _advance(self, state: Key, step: pb.Step, run: RunOne) -> None:
        self._save()
        self._at = None
        done = run(self._model, step)
        self._runs[state] = (*self._runs[state[:-1]], done)
        self._at = state

    def _save(self) -> None:
        if self._at is not None and self._at not in self._snapshots:
            self._snapshots[self._at] = self._model.quantized_model().snapshot()

    def _restore(self, state: Key) -> None:
        if self._at != state:
            self._model.quantized_model().restore(self._snapshots[state])
            self._at = state


def _extended(branch: Branch, step: pb.Step, run: RunOne) -> Branch:
    """Return a copy of a float model with one more step."""
    model = branch.model.copy()
    try:
        done = run(model, step)
    except BaseException:
        model.close()
        raise
    return Branch(model, (*branch.runs, done))


def _runner(context: StepContext, plan: pb.Plan) -> RunOne:
    """Return what runs a step as a job of its own would."""

    def run(model: WorkingModel, step: pb.Step) -> StepRun:
        context.check()
        inside = replace(
            context,
            stage=pb.Stage(kind=context.stage.kind, step_id=step.id),
            quantization=plan.quantization,
            warnings=[],
        )
        began = monotonic()
        findings = run_step(inside, model, step)
        report = pb.StepReport(
            step=step,
            seconds=monotonic() - began,
            device=model.device,
            findings=findings.values,
            summary=findings.summary,
        )
        return StepRun(report, findings.data, tuple(inside.warnings))

    return run


def _simulation_key(plan: pb.Plan) -> Key:
    before, calibrate, _ = split(plan)
    quantization = plan.quantization.SerializeToString(deterministic=True)
    return (quantization, *keys_of([*before, calibrate]))
