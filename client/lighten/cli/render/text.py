"""Figures, names and states as people read them."""

from lighten import v1 as pb

_STATE_STYLES: dict[pb.JobState.ValueType, str] = {
    pb.JOB_STATE_SUCCEEDED: "bold green",
    pb.JOB_STATE_FAILED: "bold red",
    pb.JOB_STATE_CANCELLED: "yellow",
    pb.JOB_STATE_CANCELLING: "yellow",
    pb.JOB_STATE_RUNNING: "cyan",
    pb.JOB_STATE_STARTING: "cyan",
}
_METRIC_NAMES: dict[pb.Metric.ValueType, str] = {
    pb.METRIC_TOP1: "top-1",
    pb.METRIC_TOP5: "top-5",
    pb.METRIC_SQNR: "SQNR",
    pb.METRIC_COSINE: "cosine",
    pb.METRIC_AGREEMENT: "agreement",
    pb.METRIC_KL_DIVERGENCE: "KL",
}
# What a view shows while a job runs; the result has all.
KEY_METRICS = (pb.METRIC_TOP1, pb.METRIC_SQNR, pb.METRIC_AGREEMENT)
_COLUMN_NAMES = {"baseline": "FP32"}
_ARTIFACTS: dict[pb.ArtifactKind.ValueType, str] = {
    pb.ARTIFACT_KIND_ENCODINGS: "AIMET encodings",
    pb.ARTIFACT_KIND_FLOAT_ONNX: "float ONNX, for the encodings",
    pb.ARTIFACT_KIND_QDQ_ONNX: "QDQ ONNX, for ONNX Runtime",
    pb.ARTIFACT_KIND_ANALYSIS: "findings",
    pb.ARTIFACT_KIND_REPORT: "report, opens in a browser",
}
_SHARES = frozenset({pb.METRIC_TOP1, pb.METRIC_TOP5, pb.METRIC_AGREEMENT})


def state_name(state: pb.JobState.ValueType) -> str:
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")


def state_style(state: pb.JobState.ValueType) -> str:
    return _STATE_STYLES.get(state, "default")


def stage_name(stage: pb.Stage) -> str:
    """Return ``fetch``, ``load``..., and for a step its id."""
    if stage.kind == pb.Stage.KIND_STEP and stage.step_id:
        return stage.step_id
    return pb.Stage.Kind.Name(stage.kind).removeprefix("KIND_").lower()


def metric_name(metric: pb.Metric.ValueType) -> str:
    known = _METRIC_NAMES.get(metric)
    return known or f"metric {metric}"


def column_name(column: str) -> str:
    """Return how people call a column of the comparison; a step is called by its id."""
    return _COLUMN_NAMES.get(column, column)


def metric_value(item: pb.MetricValue) -> str:
    """Return the value with its unit, and ± one standard error where it says something.

    It is 0 where all samples agree, which a few samples do easily.
    """
    if item.metric in _SHARES:
        text = f"{100 * item.value:.1f} %"
        return f"{text} ± {100 * item.standard_error:.1f}" if item.standard_error else text
    if item.metric == pb.METRIC_SQNR:
        return f"{item.value:.1f} dB"
    if item.metric == pb.METRIC_COSINE:
        return f"{item.value:.4f}"
    return f"{item.value:.3g}"


def artifact_kind(kind: pb.ArtifactKind.ValueType) -> str:
    """Return what a file is and what it is for."""
    return _ARTIFACTS.get(kind, "")


def cpu(item: pb.AttemptCpu) -> str:
    """Return the model of a CPU, and what to know of its kernels."""
    return f"{item.model}, whose INT8 kernels saturate" if item.int8_saturates else item.model


def size(count: int) -> str:
    """Return bytes with a decimal prefix."""
    return f"{count} B" if count < 1000 else f"{amount(count)}B"


def amount(count: float) -> str:
    """Return a number with a decimal prefix: ``3.5 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 999.5 or prefix == "T":
            break
        count /= 1000
    return f"{count:.3g} {prefix}"


def seconds(value: float) -> str:
    """Return a duration: ``0.4 s``, ``12 s``, ``3:05``, ``1:02:09``."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def latency(value: float) -> str:
    """Return seconds of one inference as milliseconds or microseconds."""
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def ratio(baseline: float, value: float, better: str, worse: str) -> str:
    """Return how many times smaller (or faster) a value is than the baseline."""
    if baseline <= 0 or value <= 0:
        return ""
    times = baseline / value
    word = better if times >= 1 else worse
    return f"{max(times, 1 / times):.1f}× {word}"  # noqa: RUF001  the sign for "times"
