"""Figures and names as the report shows them."""

from collections.abc import Iterable

from lighten import v1 as pb
from lighten.cli.render import text

_TYPES = {
    pb.DATA_TYPE_INT4: "INT4",
    pb.DATA_TYPE_INT8: "INT8",
    pb.DATA_TYPE_INT16: "INT16",
    pb.DATA_TYPE_FLOAT16: "FP16",
    pb.DATA_TYPE_FLOAT8_E4M3: "FP8",
}
# From here on an SQNR tells of rounding in floats, not of quantization.
EXACT_DB = 100.0


def type_name(data_type: pb.DataType.ValueType) -> str:
    return _TYPES.get(data_type, "")


def plan_types(config: pb.QuantizationConfig) -> str:
    """Return ``INT8``, or ``W4A8`` where weights and activations differ."""
    weights, activations = type_name(config.weights), type_name(config.activations)
    if weights == activations:
        return weights
    return f"W{weights.removeprefix('INT')}A{activations.removeprefix('INT')}"


def decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def count(value: float) -> str:
    """Return a count with thin spaces between thousands, or a measured figure shortly."""
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}"


def number(value: float) -> str:
    """Return a value of a tensor."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def metric(item: pb.MetricValue) -> str:
    if item.metric == pb.METRIC_SQNR:
        return decibels(item.value)
    return text.metric_value(item)


def enum_word(name: str, prefix: str) -> str:
    """Return ``per channel`` for ``GRANULARITY_PER_CHANNEL``."""
    return name.removeprefix(prefix).lower().replace("_", " ")


def plural(number_of: int, noun: str) -> str:
    return f"{count(number_of)} {noun}" if number_of == 1 else f"{count(number_of)} {noun}s"


def find(values: Iterable[pb.MetricValue], wanted: pb.Metric.ValueType) -> pb.MetricValue | None:
    """Return the value of one metric, where it was measured."""
    return next((item for item in values if item.metric == wanted), None)
