"""Jobs and servers as tables."""

from collections.abc import Iterable
from datetime import UTC, datetime
from os.path import commonprefix

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lighten import v1 as pb
from lighten.cli.render import text


def jobs_table(jobs: Iterable[pb.Job]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("job", "state", "progress", "created", "techniques", "title"):
        table.add_column(column, no_wrap=column == "job")
    for job in jobs:
        table.add_row(
            job.name.rpartition("/")[2],
            Text(text.state_name(job.state), style=text.state_style(job.state)),
            f"{100 * _fraction(job):.0f} %",
            _when(job.create_time),
            ", ".join(job.techniques),
            job.display_name,
        )
    return table


def job_details(job: pb.Job) -> RenderableType:
    """Return one job without its result."""
    grid = Table.grid(padding=(0, 2))
    state = Text(text.state_name(job.state), style=text.state_style(job.state))
    rows: list[tuple[str, RenderableType]] = [
        ("job", job.name),
        ("state", Text.assemble(state, f"  {job.state_reason}") if job.state_reason else state),
        ("title", job.display_name),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))),
        ("techniques", ", ".join(job.techniques)),
        ("created", _when(job.create_time)),
        ("started", _when(job.start_time) if job.HasField("start_time") else ""),
        ("ended", _when(job.end_time) if job.HasField("end_time") else ""),
        ("attempt", str(job.attempt) if job.attempt else ""),
        ("model", job.model_sha256),
    ]
    for name, value in rows:
        if value:
            grid.add_row(Text(name, style="dim"), value)
    return grid


def change_line(change: pb.WatchJobsResponse) -> str:
    """Return one change of a watch over many jobs; empty for the marker."""
    match change.WhichOneof("payload"):
        case "job":
            job = change.job
            fraction = f"{100 * _fraction(job):.0f} %"
            return (
                f"{job.name}  {text.state_name(job.state)}  {fraction}  {job.display_name}".rstrip()
            )
        case "removed":
            return f"{change.removed}  removed"
    return ""


def capabilities(answer: pb.GetCapabilitiesResponse) -> RenderableType:
    """Return what a server can do."""
    parts: list[RenderableType] = [
        Text(f"Lighten {answer.server_version}", style="bold"),
        _techniques(answer),
        _types(answer),
    ]
    lists = [
        ("model formats", [pb.ModelFormat.Name(item) for item in answer.model_formats]),
        ("dataset formats", [pb.DatasetFormat.Name(item) for item in answer.dataset_formats]),
        ("hardware configs", list(answer.hardware_configs)),
        ("GPU profiles", [item.name for item in answer.gpu_profiles]),
        ("devices", [device for item in answer.workers for device in item.devices]),
    ]
    for name, values in lists:
        if values:
            short = (value.partition("_FORMAT_")[2] or value for value in values)
            parts.append(Text.assemble((f"{name}: ", "bold"), ", ".join(short)))
    parts.extend(Text.assemble(("worker: ", "bold"), _worker(worker)) for worker in answer.workers)
    return Group(*parts)


def _worker(worker: pb.WorkerInventory) -> str:
    known = ", ".join(f"{name} {worker.versions[name]}" for name in sorted(worker.versions))
    if worker.HasField("int8_saturates"):
        known += f"; INT8 kernels {'saturate' if worker.int8_saturates else 'are exact'}"
    return known


def _techniques(answer: pb.GetCapabilitiesResponse) -> Table:
    table = Table(title="Techniques", title_justify="left", header_style="bold")
    for column in ("step", "engines", "what it does", "parameters"):
        table.add_column(column)
    for item in answer.techniques:
        engines = (pb.Engine.Name(engine).removeprefix("ENGINE_") for engine in item.info.engines)
        parameters = (_parameter(parameter) for parameter in item.parameters)
        table.add_row(
            item.name, ", ".join(engines).lower(), _purpose(item.info), "\n".join(parameters)
        )
    return table


def _purpose(info: pb.TechniqueInfo) -> Text:
    """Return what a technique is for, and what it needs."""
    needs = [_word(pb.Need.Name(need), "NEED_") for need in info.needs]
    suffix = f" (needs {', '.join(needs)})" if needs else ""
    return Text.assemble(info.summary, (suffix, "dim"))


def _parameter(item: pb.Parameter) -> str:
    prefix = commonprefix(item.values)  # noqa: RUF071  of words, not of paths
    prefix = prefix[: prefix.rfind("_") + 1]
    kind = " | ".join(value.removeprefix(prefix) for value in item.values) or item.type
    default = item.bounds.default_value.removeprefix(prefix)
    return f"{item.name}: {kind}" + (f" (default {default})" if default else "")


def _types(answer: pb.GetCapabilitiesResponse) -> Table:
    table = Table(title="Types", title_justify="left", header_style="bold")
    for column in ("engine", "weights", "activations", "scales of weights", "QDQ ONNX"):
        table.add_column(column)
    for item in answer.type_support:
        table.add_row(
            pb.Engine.Name(item.engine).removeprefix("ENGINE_").lower(),
            pb.DataType.Name(item.weights).removeprefix("DATA_TYPE_"),
            pb.DataType.Name(item.activations).removeprefix("DATA_TYPE_"),
            ", ".join(
                _word(pb.Granularity.Name(one), "GRANULARITY_") for one in item.granularities
            ),
            "yes" if item.qdq_onnx else "no",
        )
    return table


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).replace("_", " ").lower()


def _fraction(job: pb.Job) -> float:
    return 1.0 if job.state == pb.JOB_STATE_SUCCEEDED else job.progress.fraction


def _when(time: Timestamp) -> str:
    """Return a time in this machine's zone."""
    moment: datetime = time.ToDatetime(tzinfo=UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
