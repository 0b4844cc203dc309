"""Running techniques on small real models of either engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import nn

from lighten import v1 as pb
from lighten_service.techniques import Findings, run_step
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.evaluation import Evaluation, Reference, evaluate
from lighten_service.worker.judge import Judge
from lighten_service.worker.model import Batch, WorkingModel
from tests.support.depthwise_net import SIDE, exported

TENSOR = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_TENSOR)
CHANNEL = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_CHANNEL)
ENGINES = ("torch", "onnx")


class Silent:
    """A reporter that nobody listens to."""

    def send(self, event: pb.JobEvent) -> None: ...

    def check(self) -> None: ...


@dataclass(frozen=True)
class InMemory:
    """Unlabelled samples that are at hand."""

    data: Sequence[Batch]
    labelled: bool = False
    key: str = "input"

    @property
    def count(self) -> int:
        return sum(len(batch[self.key]) for batch in self.data)

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        return (LabelledBatch(batch) for batch in self.data)


@dataclass
class Bench:
    """A model, its samples, and what FP32 said about them."""

    model: WorkingModel
    calibration: Samples
    evaluation: Samples
    scratch: Path
    quantization: pb.QuantizationConfig = field(default_factory=pb.QuantizationConfig)
    warnings: list[pb.Warning] = field(default_factory=list)

    def __post_init__(self) -> None:
        record = self.model.predict
        self.judge = Judge(
            self.evaluation,
            Reference.record(record, self.evaluation, self.scratch / "evaluation"),
            self.calibration,
            Reference.record(record, self.calibration, self.scratch / "calibration"),
        )

    def context(self, reporter: object = None) -> StepContext:
        return StepContext(
            stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="step"),
            reporter=reporter or Silent(),  # type: ignore[arg-type]
            quantization=self.quantization,
            calibration=self.calibration,
            evaluation=self.evaluation,
            scratch=self.scratch,
            device="cpu",
            seed=0,
            judge=self.judge,
            warnings=self.warnings,
        )

    def run(self, **step: object) -> Findings:
        """Run one technique, for example ``bias_correction=pb.BiasCorrection()``."""
        return self.run_in(self.context(), **step)

    def run_in(self, context: StepContext, **step: object) -> Findings:
        return run_step(context, self.model, pb.Step(id="step", **step))  # type: ignore[arg-type]

    def measure(self) -> Evaluation:
        """Compare the model as it is now with FP32, on evaluation samples."""
        return evaluate(
            self.model.predict, self.evaluation, reference=self.judge.evaluation_reference
        )

    def sqnr_db(self) -> float:
        found = self.measure().value(pb.METRIC_SQNR)
        assert found is not None
        return found

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the calibrated model back as it was when the context ends."""
        quantized = self.model.quantized_model()
        before = quantized.snapshot()
        yield
        quantized.restore(before)
        self.warnings.clear()

    def reasons(self) -> list[str]:
        return [warning.reason for warning in self.warnings]


def calibrated_bench(
    model: WorkingModel,
    calibration: Samples,
    evaluation: Samples,
    scratch: Path,
    quantization: pb.QuantizationConfig,
) -> Bench:
    """Return a bench whose model is calibrated with min-max ranges, batch norms folded."""
    bench = Bench(model, calibration, evaluation, scratch, quantization)
    bench.run(fold_batch_norms=pb.FoldBatchNorms())
    bench.run(calibrate=pb.Calibrate())
    return bench


def open_engine(engine: str, module: nn.Module, scratch: Path) -> WorkingModel:
    """Return a module of 3x16x16 inputs as the working model of an engine."""
    if engine == "onnx":
        return open_graph(exported(module), scratch)
    from lighten_service.worker.engines import torch_export, torch_prepare
    from lighten_service.worker.engines.torch_engine import TorchModel

    specs = (pb.InputSpec(name="input", shape=[3, SIDE, SIDE]),)
    prepared = torch_prepare.prepare(module, torch_prepare.example_inputs(specs, seed=0))
    signature = torch_export.Signature(("input",), ("output",), 21)
    return TorchModel(prepared, specs, signature, scratch=scratch, device="cpu", seed=0)


def open_graph(model: onnx.ModelProto, scratch: Path) -> WorkingModel:
    """Return an upload as a working model."""
    from lighten_service.worker.engines.onnx_engine import open_onnx_model

    path = scratch / "upload.onnx"
    onnx.save(model, str(path))
    return open_onnx_model(pb.JobSpec(), path, scratch=scratch, device="cpu", seed=0)
