"""Stages of one attempt: each gets its context and its share of the job."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError
from lighten_service.worker.context import Reporter, StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.judge import Judge
from lighten_service.worker.providers import what_ran

# Warning of a job that asked for a GPU.
RAN_ON_CPU = "RAN_ON_CPU"

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
    _reports: list[pb.StageReport] = field(default_factory=list)
    _began: float = 0.0
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
        what_ran()
        self._began = monotonic()
        self._reports.append(pb.StageReport(stage=stage, device=self.device))
        try:
            with context.timed(title):
                yield context
                self._complete(context)
        except LightenError as error:
            error.stage = error.stage or stage
            raise

    def skip(self, kind: pb.Stage.Kind.ValueType, count: int = 1) -> None:
        """Take note that planned stages need not run."""
        self._passed += _WEIGHTS[kind] * count

    def reports(self) -> list[pb.StageReport]:
        """Return what every stage ran on; the one that runs has its seconds so far."""
        self._reports[-1].seconds = monotonic() - self._began
        return self._reports

    def _complete(self, context: StepContext) -> None:
        report, ran = self._reports[-1], what_ran()
        report.seconds = monotonic() - self._began
        report.device = self.device
        report.provider = ", ".join(ran.providers)
        told = any(warning.reason == RAN_ON_CPU for warning in self.warnings)
        if ran.instead_of and not told:
            context.warn(
                RAN_ON_CPU,
                f"ONNX Runtime was asked for {ran.instead_of} and ran on {report.provider}",
            )

    def _share(self, kind: pb.Stage.Kind.ValueType) -> tuple[float, float]:
        total = sum(_WEIGHTS[planned] for planned in self.planned)
        start = self._passed / total
        self._passed += _WEIGHTS[kind]
        return start, min(self._passed / total, 1.0)
