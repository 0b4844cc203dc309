"""FP32, naive and optimized side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lighten import v1 as pb
from lighten.cli.render import text
from lighten_service.worker.report import words
from lighten_service.worker.report.charts import Bar


@dataclass(frozen=True, slots=True)
class Row:
    """``cells``: (value, what stands small below it), one a column; empty where not known."""

    name: str
    note: str
    cells: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    # (title, bars) of each chart.
    charts: Sequence[tuple[str, Sequence[Bar]]]
    # Of models with several outputs: (output, column, SQNR, cosine, largest error).
    outputs: Sequence[tuple[str, ...]] = field(default=())


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    style: str
    report: pb.ModelReport


# Value and note of a cell, from the baseline's report and the column's own.
_Cell = Callable[[pb.ModelReport, pb.ModelReport], tuple[str, str]]

_METRIC_NOTES = {
    pb.METRIC_TOP1: "highest score is the label",
    pb.METRIC_TOP5: "label among five highest",
    pb.METRIC_SQNR: "signal to quantization noise",
    pb.METRIC_COSINE: "of outputs with FP32",
    pb.METRIC_AGREEMENT: "same class as FP32",
    pb.METRIC_KL_DIVERGENCE: "nats from FP32; lower is better",
}


def comparison(spec: pb.JobSpec, result: pb.JobResult) -> Comparison:
    columns = _columns(spec, result)
    return Comparison(
        columns=[column.name for column in columns],
        rows=[row for row in _rows(columns) if any(value for value, _ in row.cells)],
        notes=_notes(result),
        charts=[chart for chart in (_file_chart(columns), _latency_chart(columns)) if chart[1]],
        outputs=_outputs(columns),
    )


def _columns(spec: pb.JobSpec, result: pb.JobResult) -> list[_Column]:
    types = words.plan_types(spec.plan.quantization)
    found = [_Column("FP32", "float", result.baseline)]
    if result.HasField("naive"):
        found.append(_Column(f"naive {types}", "naive", result.naive))
    return [*found, _Column(f"optimized {types}", "main", result.optimized)]


def _rows(columns: Sequence[_Column]) -> list[Row]:
    baseline = columns[0].report
    metrics = sorted({item.metric for column in columns for item in column.report.metrics})
    kinds: list[tuple[str, str, _Cell]] = [
        *((text.metric_name(item), _metric_note(item, columns), _metric(item)) for item in metrics),
        ("file", "ONNX", _file),
        ("weights", "at their widths", _weights),
        ("parameters", "", _amount(lambda report: report.parameters)),
        ("MACs", "multiply-accumulates a sample", _amount(lambda report: report.macs)),
        ("bit operations", "MACs × bits × bits", _bops),  # noqa: RUF001
        ("latency", "median; 90th percentile below", _latency),
        ("integer operators", "of convolutions and products", _operators),
        ("conversions", "quantize and dequantize, left in the graph", _conversions),
    ]
    return [
        Row(name, note, [cell(baseline, column.report) for column in columns])
        for name, note, cell in kinds
    ]


def _metric_note(metric: pb.Metric.ValueType, columns: Sequence[_Column]) -> str:
    found = [words.find(column.report.metrics, metric) for column in columns]
    counts = sorted({item.samples for item in found if item is not None and item.samples})
    samples = ", ".join(words.count(item) for item in counts)
    note = _METRIC_NOTES.get(metric, "")
    return f"{note}; n = {samples}" if samples else note


def _metric(metric: pb.Metric.ValueType) -> _Cell:
    def cell(_: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
        found = words.find(report.metrics, metric)
        return (words.metric(found), "") if found is not None else ("", "")

    return cell


def _file(baseline: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    return _bytes(baseline, report, baseline.file_bytes, report.file_bytes)


def _weights(baseline: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    return _bytes(baseline, report, baseline.weight_bytes, report.weight_bytes)


def _bytes(
    baseline: pb.ModelReport, report: pb.ModelReport, before: int, after: int
) -> tuple[str, str]:
    if not after:
        return "", ""
    ratio = "" if report is baseline else text.ratio(before, after, "smaller", "larger")
    return text.size(after), ratio


def _amount(read: Callable[[pb.ModelReport], int]) -> _Cell:
    def cell(_: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
        return (text.amount(read(report)), "") if read(report) else ("", "")

    return cell


def _bops(baseline: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    if not report.bops:
        return "", ""
    ratio = "" if report is baseline else text.ratio(baseline.bops, report.bops, "fewer", "more")
    return text.amount(report.bops), ratio


def _latency(baseline: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    if not report.HasField("latency"):
        return "", ""
    median, p90 = report.latency.median_seconds, report.latency.p90_seconds
    parts = [text.latency(p90)] if p90 else []
    if report is not baseline:
        parts.insert(0, text.ratio(baseline.latency.median_seconds, median, "faster", "slower"))
    return text.latency(median), ", ".join(filter(None, parts))


def _operators(_: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    if not report.HasField("operators"):
        return "", ""
    found = report.operators
    return f"{found.integer_heavy} of {found.heavy}", f"{words.count(found.total)} in all"


def _conversions(_: pb.ModelReport, report: pb.ModelReport) -> tuple[str, str]:
    if not report.HasField("operators"):
        return "", ""
    return words.count(report.operators.conversions), ""


def _notes(result: pb.JobResult) -> list[str]:
    """Return what the figures are relative to and were measured with."""
    notes = ["\N{PLUS-MINUS SIGN}: one standard error. n: samples that a figure was measured on."]
    if result.HasField("naive"):
        notes.append("Naive: the same types with min-max ranges and folded batch norms alone.")
    if result.baseline.HasField("latency"):
        item = result.baseline.latency
        notes.append(
            f"Latency: batch of {item.batch_size}, {item.runtime}, {item.provider}, "
            f"{words.plural(item.threads, 'thread')}, {item.runs} runs in turns."
        )
    return notes


def _file_chart(columns: Sequence[_Column]) -> tuple[str, list[Bar]]:
    sizes = [float(column.report.file_bytes) for column in columns]
    return "File size", _bars(columns, sizes, lambda value: text.size(int(value)))


def _latency_chart(columns: Sequence[_Column]) -> tuple[str, list[Bar]]:
    seconds = [column.report.latency.median_seconds for column in columns]
    return "Latency of one inference", _bars(columns, seconds, text.latency)


def _bars(
    columns: Sequence[_Column], values: Sequence[float], word: Callable[[float], str]
) -> list[Bar]:
    """Return a bar for each value above 0; none where there are not two to compare."""
    if sum(value > 0 for value in values) < 2:
        return []
    return [
        Bar(column.name, value / max(values), word(value), column.style)
        for column, value in zip(columns, values, strict=True)
        if value > 0
    ]


def _outputs(columns: Sequence[_Column]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            output.output,
            column.name,
            words.decibels(output.sqnr_db),
            f"{output.cosine:.4f}",
            words.number(output.max_abs_error),
        )
        for column in columns
        for output in column.report.outputs
    ]
    return rows if len({row[0] for row in rows}) > 1 else []
