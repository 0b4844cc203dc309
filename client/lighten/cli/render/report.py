"""What a finished job returned: the comparison, the checks, the artifacts, what to try next."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.cli.render.advice import advice
from lighten.cli.render.goal import goal_view
from lighten.cli.render.proof import proof_view

Report = pb.ModelReport
# A cell from the baseline's report and the column's own.
Cell = Callable[[Report, Report], str]


def render_result(job: pb.Job, files: Mapping[str, Path] | None = None) -> RenderableType:
    """Return the whole report of a job that succeeded.

    Args:
        files: where each artifact lies on this machine, by its name; without it URIs are shown.
    """
    parts: list[RenderableType] = [comparison(job)]
    if job.result.HasField("goal"):
        parts.append(goal_view(job))
    if job.result.warnings:
        parts.append(_warnings(job))
    if job.result.checks:
        parts.append(_checks(job))
    if job.result.HasField("proof"):
        parts.append(proof_view(job.result.proof))
    if job.result.provenance.cpus:
        parts.append(_cpus(job.result.provenance.cpus))
    parts.append(artifacts_view(job.result.artifacts, files))
    parts.append(Text.assemble(("Next: ", "bold"), advice(job)))
    return Group(*(item for part in parts for item in (part, Text())))


def comparison(job: pb.Job) -> Table:
    """Return FP32, naive and optimized side by side, in 80 columns."""
    result, types = job.result, type_name(job)
    columns = [("FP32", result.baseline)]
    if result.HasField("naive"):
        columns.append((f"naive {types}", result.naive))
    columns.append((f"optimized {types}", result.optimized))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.title, table.title_justify = job.display_name or job.name, "left"
    table.caption, table.caption_justify = _notes(result), "left"
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    for name, cell in _rows([report for _, report in columns]):
        cells = [cell(result.baseline, report) for _, report in columns]
        if any(cells):
            table.add_row(name, *cells)
    return table


def type_name(job: pb.Job) -> str:
    """Return ``INT8``, or ``W4A8`` where weights and activations differ."""
    config = job.resolved_spec.plan.quantization
    if not config.weights:
        return ""
    weights, activations = (_bits(item) for item in (config.weights, config.activations))
    return f"INT{weights}" if weights == activations else f"W{weights}A{activations}"


def artifacts_view(
    artifacts: Sequence[pb.Artifact], files: Mapping[str, Path] | None = None
) -> RenderableType:
    """Return the files of a job below the folder or URI where they lie."""
    places: dict[str, Table] = {}
    for item in artifacts:
        place = str(files[item.name]) if files and item.name in files else item.uri
        table = places.setdefault(place.removesuffix(item.name), _files_table())
        digest = Text(f"sha256 {item.sha256[:12]}", style="dim")
        table.add_row("", item.name, text.size(item.bytes), digest, text.artifact_kind(item.kind))
    heads = (Text.assemble(("Artifacts in ", "bold"), place) for place in places)
    return Group(*(part for pair in zip(heads, places.values(), strict=True) for part in pair))


def _files_table() -> Table:
    return Table.grid("", "", Column(justify="right"), "", "", padding=(0, 2))


def _rows(reports: list[Report]) -> list[tuple[str, Cell]]:
    metrics = sorted({item.metric for report in reports for item in report.metrics})
    rows = [(_metric_label(metric, reports), _metric_cell(metric)) for metric in metrics]
    return [
        *rows,
        ("file size", _file_cell),
        (
            "weights",
            lambda _, report: text.size(report.weight_bytes) if report.weight_bytes else "",
        ),
        ("parameters", lambda _, report: _count(report.parameters)),
        ("MACs", lambda _, report: _count(report.macs)),
        ("bit operations", lambda _, report: _count(report.bops)),
        ("latency (median)", _latency_cell),
        ("integer operators", _operators_cell),
    ]


def _metric_label(metric: pb.Metric.ValueType, reports: list[Report]) -> str:
    samples = {
        item.samples for report in reports for item in report.metrics if item.metric == metric
    }
    label = text.metric_name(metric)
    counts = ", ".join(str(count) for count in sorted(samples - {0}))
    return f"{label} (n = {counts})" if counts else label


def _metric_cell(metric: pb.Metric.ValueType) -> Cell:
    def cell(_: Report, report: Report) -> str:
        found = (item for item in report.metrics if item.metric == metric)
        return next((text.metric_value(item) for item in found), "")

    return cell


def _file_cell(baseline: Report, report: Report) -> str:
    if not report.file_bytes:
        return ""
    if report is baseline:
        return text.size(report.file_bytes)
    ratio = text.ratio(baseline.file_bytes, report.file_bytes, "smaller", "larger")
    return _with_ratio(text.size(report.file_bytes), ratio)


def _latency_cell(baseline: Report, report: Report) -> str:
    if not report.HasField("latency"):
        return ""
    median = report.latency.median_seconds
    if report is baseline:
        return text.latency(median)
    ratio = text.ratio(baseline.latency.median_seconds, median, "faster", "slower")
    return _with_ratio(text.latency(median), ratio)


def _operators_cell(_: Report, report: Report) -> str:
    if not report.operators.integer_heavy and not report.operators.conversions:
        return ""
    return f"{report.operators.integer_heavy} of {report.operators.heavy} heavy"


def _notes(result: pb.JobResult) -> str:
    """Return what the figures are relative to and were measured with; they mean little without."""
    notes = "SQNR, cosine, agreement and KL: to FP32; ±: one standard error"
    if result.baseline.HasField("latency"):
        item = result.baseline.latency
        notes += (
            f"\nlatency: batch of {item.batch_size}, {item.runtime}, "
            f"{item.provider.removesuffix('ExecutionProvider')}, {item.threads} threads, "
            f"{item.runs} runs"
        )
    return notes


def _with_ratio(value: str, ratio: str) -> str:
    return f"{value} ({ratio})" if ratio else value


def _count(value: int) -> str:
    return text.amount(value) if value else ""


def _bits(data_type: pb.DataType.ValueType) -> str:
    return pb.DataType.Name(data_type).removeprefix("DATA_TYPE_INT")


def _checks(job: pb.Job) -> Table:
    table = Table.grid(padding=(0, 1))
    for check in job.result.checks:
        mark = ("✔", "green") if check.passed else ("✘", "red")
        table.add_row(Text(*mark), Text.assemble(f"{check.name} ", (check.detail, "dim")))
    return table


def _cpus(cpus: Sequence[pb.AttemptCpu]) -> Text:
    """Return what CPU the attempts ran on, of which there is mostly one."""
    names = [
        f"attempt {item.attempt}: {text.cpu(item)}" if len(cpus) > 1 else text.cpu(item)
        for item in cpus
    ]
    return Text.assemble(("Ran on: ", "bold"), "; ".join(names))


def _warnings(job: pb.Job) -> RenderableType:
    return Group(
        *(
            Text.assemble(("warning: ", "yellow"), item.message, (f" [{item.reason}]", "dim"))
            for item in job.result.warnings
        )
    )
