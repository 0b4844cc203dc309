"""One column of the comparison: a model measured on the evaluation samples, and its file timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Predict, Reference, compare
from lighten_service.worker.formats.onnx_inputs import batch_size
from lighten_service.worker.graphs.operators import operator_counts
from lighten_service.worker.graphs.save import data_file
from lighten_service.worker.latency import measure_latency
from lighten_service.worker.model import ModelStatistics
from lighten_service.worker.runtime import thread_count
from lighten_service.worker.samples import first_samples


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
    operators: pb.OperatorCounts | None = field(default=None)

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
            operators=self.operators,
        )


def _file_bytes(file: Path) -> int:
    return sum(path.stat().st_size for path in (file, data_file(file)) if path.exists())


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


def time_columns(
    columns: Mapping[str, Column],
    samples: Samples,
    *,
    budget_seconds: float,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Fill in latency and operators of every column that has a file.

    They run in turns, one sample at a time, or as many as the graph demands.

    Args:
        columns: by name; at least one has a file.
        samples: the first of them are run.
        budget_seconds: time for all of them together.
        check: called between inferences; may raise to stop.

    Raises:
        FailedPrecondition: RUNTIME_REFUSED_MODEL, when ONNX Runtime cannot load or run one.
    """
    files = {name: column.onnx for name, column in columns.items() if column.onnx is not None}
    first = onnx.load(next(iter(files.values())), load_external_data=False)
    latencies = measure_latency(
        files,
        first_samples(samples, batch_size(first) or 1),
        threads=thread_count(),
        budget_seconds=budget_seconds,
        check=check,
    )
    for name, latency in latencies.items():
        check()
        columns[name].latency = latency
        columns[name].operators = operator_counts(files[name])


def why_not_faster(fp32: Column, quantized: Column) -> str:
    """Return what to say where a quantized file takes longer than FP32; nothing where it does not.

    Needs `time_columns`.
    """
    if not fp32.latency or not quantized.latency or not quantized.operators:
        return ""
    ratio = quantized.latency.median_seconds / fp32.latency.median_seconds
    if ratio <= 1.0:
        return ""
    counts = quantized.operators
    return (
        f"the quantized model takes {ratio:.2f} times as long as FP32 in ONNX Runtime on this CPU: "
        f"{counts.integer_heavy} of {counts.heavy} convolutions and matrix products compute with "
        f"integers, between {counts.conversions} conversions to or from floats among "
        f"{counts.total} operators. It is smaller all the same; another target may run it faster"
    )
