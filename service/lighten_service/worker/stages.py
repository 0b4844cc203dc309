"""Stages of one attempt: each gets its context and its share of the job."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError
from lighten_service.worker.context import Reporter, StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.judge import Judge

# Share of the job's time that a stage usually takes, relative to the others.
_WEIGHTS: Mapping[pb.Stage.Kind.ValueType, float] = {
    pb.Stage.KIND_FETCH: 3,
    pb.Stage.KIND_LOAD: 3,
    pb.Stage.KIND_PREPARE: 2,
    pb.Stage.KIND_BASELINE: 30,
    pb.Stage.KIND_STEP: 15,
    pb.Stage.KIND_GUIDE: 200,
    pb.Stage.KIND_EVALUATE: 15,
    pb.Stage.KIND_EXPORT: 5,
    pb.Stage.KIND_VERIFY: 10,
    pb.Stage.KIND_PUBLISH: 2,
}


@dataclass
class Stages:
    """Makes the context of each stage, in the order of the plan.

    ``calibration``, ``evaluation``, ``judge`` and ``device`` are set once they are known.
    """

    reporter: Reporter
    quantization: pb.QuantizationConfig
    scratch: Path
    seed: int
    planned: Sequence[pb.Stage.Kind.ValueType]
    device: str = "cpu"
    calibration: Samples | None = None
    evaluation: Samples | None = None
    judge: Judge | None = None
    warnings: list[pb.Warning] = field(default_factory=list)
    _passed: float = 0.0

    @contextmanager
    def enter(
        self, kind: pb.Stage.Kind.ValueType, title: str, *, step_id: str = ""
    ) -> Iterator[StepContext]:
        """Run one stage: reported as started and finished, errors marked with where they arose."""
        start, end = self._share(kind)
        stage = pb.Stage(kind=kind, step_id=step_id)
        context = StepContext(
            stage=stage,
            reporter=self.reporter,
            quantization=self.quantization,
            calibration=self.calibration,
            evaluation=self.evaluation,
            scratch=self.scratch,
            device=self.device,
            seed=self.seed,
            judge=self.judge,
            fraction_start=start,
            fraction_end=end,
            warnings=self.warnings,
        )
        try:
            with context.timed(title):
                yield context
        except LightenError as error:
            error.stage = error.stage or stage
            raise

    def _share(self, kind: pb.Stage.Kind.ValueType) -> tuple[float, float]:
        total = sum(_WEIGHTS[planned] for planned in self.planned)
        start = self._passed / total
        self._passed += _WEIGHTS[kind]
        return start, min(self._passed / total, 1.0)
