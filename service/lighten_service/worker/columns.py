"""One column of the comparison: a model measured on the evaluation samples."""

from dataclasses import dataclass, field
from pathlib import Path

from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Predict, Reference, compare
from lighten_service.worker.graphs.save import data_file
from lighten_service.worker.model import ModelStatistics


@dataclass
class Column:
    """A measured model. ``recorded`` holds its outputs, ``onnx`` its file where one was written."""

    name: str
    recorded: Reference
    metrics: list[pb.MetricValue]
    outputs: list[pb.OutputFidelity]
    statistics: ModelStatistics
    onnx: Path | None = None
    latency: pb.Latency | None = field(default=None)

    def report(self) -> pb.ModelReport:
        """Return the column as the result has it."""
        return pb.ModelReport(
            metrics=self.metrics,
            outputs=self.outputs,
            file_bytes=_file_bytes(self.onnx) if self.onnx else 0,
            weight_bytes=self.statistics.weight_bytes,
            parameters=self.statistics.parameters,
            macs=self.statistics.macs,
            bops=self.statistics.bops,
            latency=self.latency,
        )


def _file_bytes(onnx: Path) -> int:
    return sum(path.stat().st_size for path in (onnx, data_file(onnx)) if path.exists())


def measure(
    context: StepContext,
    name: str,
    predict: Predict,
    statistics: ModelStatistics,
    samples: Samples,
    *,
    reference: Reference | None,
) -> Column:
    """Evaluate a model, compare it with ``reference`` (FP32) and report its metrics."""
    recorded = Reference.record(
        predict,
        samples,
        context.scratch / "outputs" / name,
        on_batch=lambda done: context.progress(done, samples.count, "samples"),
    )
    metrics, outputs = recorded.evaluation.metric_values(), []
    if reference is not None:
        fidelity = compare(recorded, reference)
        metrics += fidelity.metric_values()
        outputs = fidelity.output_fidelity()
    for value in metrics:
        context.metric(name, value)
    return Column(name, recorded, metrics, outputs, statistics)
