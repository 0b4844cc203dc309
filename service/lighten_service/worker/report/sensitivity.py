"""Where quantization loses: parts of the model, single layers, ranges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from lighten_service.worker.analyses import (
    AnalyzedLayer,
    EqualizedLayer,
    Range,
    Sensitivity,
    WholeModel,
)
from lighten_service.worker.report import charts, words
from lighten_service.worker.report.charts import Bar, Plot

# Layers that the bars show; the table has all.
WORST = 20
# Layers whose channels are drawn before and after equalization.
_DRAWN = 4


@dataclass(frozen=True, slots=True)
class LayerRow:
    number: int
    layer: str
    op: str
    bits: str
    alone: str
    output: str
    range: str


@dataclass(frozen=True, slots=True)
class SensitivityView:
    samples: int
    parts: Sequence[Bar]
    fault: str
    worst: Sequence[Bar]
    profile: Plot | None
    rows: Sequence[LayerRow]


@dataclass(frozen=True, slots=True)
class RangesView:
    weights: Plot | None
    activations: Plot | None


@dataclass(frozen=True, slots=True)
class EqualizedView:
    """``used``: median share of the tensor's range that a channel uses, in words."""

    layer: str
    before: Plot
    after: Plot
    used: str


def sensitivity(data: Sensitivity) -> SensitivityView:
    layers = data["layers"]
    return SensitivityView(
        samples=data["samples"],
        parts=_parts(data["model"]),
        fault=_fault(data["model"]),
        worst=_worst(layers),
        profile=_profile(layers),
        rows=[_row(number, layer) for number, layer in enumerate(layers, 1)],
    )


def ranges(data: Sensitivity) -> RangesView:
    weights = [(layer["layer"], _hull(layer["channel_ranges"])) for layer in data["layers"]]
    activations = [(item["tensor"], item["range"]) for item in data["activations"]]
    return RangesView(
        weights=_range_plot("Range of each layer's weights", weights),
        activations=_range_plot("Range of each quantized activation", activations),
    )


def equalized(layers: Sequence[EqualizedLayer]) -> list[EqualizedView]:
    """Return the layers whose channels gained most, the best first."""
    changed = [layer for layer in layers if len(layer["before"]) > 1]
    changed.sort(key=lambda layer: _used(layer["before"]) - _used(layer["after"]))
    return [
        EqualizedView(
            layer=layer["layer"],
            before=_channels(f"Before, channels of {layer['layer']}", layer["before"]),
            after=_channels(f"After, channels of {layer['layer']}", layer["after"]),
            used=f"{100 * _used(layer['before']):.0f} % \N{RIGHTWARDS ARROW} "
            f"{100 * _used(layer['after']):.0f} %",
        )
        for layer in changed[:_DRAWN]
    ]


def _parts(model: WholeModel) -> list[Bar]:
    found = (
        ("weights and activations", model["all_db"], "main"),
        ("weights alone", model["weights_db"], "weight"),
        ("activations alone", model["activations_db"], "activation"),
    )
    longest = max((value for _, value, _ in found), default=0.0)
    if longest <= 0:
        return []
    return [
        Bar(name, max(value, 0.0) / longest, words.decibels(value), style)
        for name, value, style in found
    ]


def _fault(model: WholeModel) -> str:
    """Say which half of the quantizers makes more noise, and how much of it."""
    weights, activations = _noise(model["weights_db"]), _noise(model["activations_db"])
    share = weights / (weights + activations)
    if abs(share - 0.5) < 0.15:
        return "Weights and activations make about as much noise."
    name, share = ("weights", share) if share > 0.5 else ("activations", 1 - share)
    return f"Of the noise of both measured alone, {name} make {100 * share:.0f} %."


def _worst(layers: Sequence[AnalyzedLayer]) -> list[Bar]:
    """Return the layers that make most noise alone; bars are proportional to its power."""
    ordered = sorted(layers, key=lambda layer: layer["alone_db"])[:WORST]
    if not ordered:
        return []
    loudest = _noise(ordered[0]["alone_db"])
    total = sum(_noise(layer["alone_db"]) for layer in layers)
    return [
        Bar(
            label=layer["layer"],
            share=_noise(layer["alone_db"]) / loudest,
            value=words.decibels(layer["alone_db"]),
            note=_percent(_noise(layer["alone_db"]) / total),
        )
        for layer in ordered
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _noise(decibels: float) -> float:
    """Return noise power relative to the signal's."""
    return float(10 ** (-decibels / 10))


def _row(number: int, layer: AnalyzedLayer) -> LayerRow:
    hull = _hull(layer["channel_ranges"])
    return LayerRow(
        number=number,
        layer=layer["layer"],
        op=layer["op"],
        bits=str(layer.get("weight_bits", "float")),
        alone=words.decibels(layer["alone_db"]),
        output=words.decibels(layer["output_db"]) if "output_db" in layer else "",
        range=f"{words.number(hull[0])} to {words.number(hull[1])}" if hull else "",
    )


def _profile(layers: Sequence[AnalyzedLayer]) -> Plot | None:
    values = [
        (name, value)
        for layer in layers
        for name, value in (("alone", layer["alone_db"]), ("output", layer.get("output_db")))
        if value is not None and value < words.EXACT_DB
    ]
    if len(layers) < 2 or not values:
        return None
    heights = [value for _, value in values]
    scale = charts.Scale(min(0.0, *heights), max(heights))
    return Plot(
        title="SQNR of each layer, in the order of execution",
        description=f"{len(layers)} layers; the lowest has {min(heights):.1f} dB",
        unit="dB",
        y_ticks=scale.marks(),
        x_ticks=charts.ordinals(len(layers)),
        marks=[*_profile_marks(layers, scale)],
        legend=[
            ("main", "this layer alone quantized, at the model's output"),
            ("activation", "all quantized, at this layer's own output"),
        ],
    )


def _profile_marks(layers: Sequence[AnalyzedLayer], scale: charts.Scale) -> Iterator[charts.Mark]:
    for at, layer in enumerate(layers):
        x = charts.middle(at, len(layers))
        for name, style in (("output_db", "activation"), ("alone_db", "main")):
            value = layer.get(name)
            if isinstance(value, float):
                title = f"{layer['layer']}: {words.decibels(value)}"
                yield charts.dot(x, scale.y(value), style, title)


def _range_plot(title: str, found: Sequence[tuple[str, Range]]) -> Plot | None:
    found = [(name, hull) for name, hull in found if hull]
    if len(found) < 2:
        return None
    low, high = min(hull[0] for _, hull in found), max(hull[1] for _, hull in found)
    scale = charts.Scale(min(low, 0.0), max(high, 0.0))
    style = "weight" if "weights" in title else "activation"
    marks = [charts.rule(scale.y(0.0), "zero")]
    for at, (name, (bottom, top)) in enumerate(found):
        words_of = f"{name}: {words.number(bottom)} to {words.number(top)}"
        x = charts.middle(at, len(found))
        marks.append(charts.span(x, scale.y(top), scale.y(bottom), style, words_of))
    return Plot(
        title=title,
        description=f"{len(found)} tensors, from {words.number(low)} to {words.number(high)}",
        unit="",
        y_ticks=scale.marks(),
        x_ticks=charts.ordinals(len(found)),
        marks=marks,
    )


def _channels(title: str, found: Sequence[Range]) -> Plot:
    """Return the range of each channel as a share of the tensor's."""
    reach = _reach(found)
    scale = charts.Scale(-1.0, 1.0)
    tops = [scale.y(high / reach) for _, high in found]
    bottoms = [scale.y(low / reach) for low, _ in found]
    return Plot(
        title=title,
        description=f"{len(found)} channels; the tensor reaches {words.number(reach)}",
        unit=f"\N{MULTIPLICATION SIGN} {words.number(reach)}",
        y_ticks=scale.marks(),
        x_ticks=charts.ordinals(len(found), 4),
        marks=[charts.band(tops, bottoms, "weight"), charts.rule(scale.y(0.0), "zero")],
    )


def _used(channels: Sequence[Range]) -> float:
    """Return the median share of the tensor's range that a channel reaches."""
    reach = _reach(channels)
    return median(max(abs(low), abs(high)) / reach for low, high in channels)


def _reach(channels: Sequence[Range]) -> float:
    return max((max(abs(low), abs(high)) for low, high in channels), default=0.0) or 1.0


def _hull(channels: Sequence[Range]) -> Range:
    if not channels:
        return []
    return [min(low for low, _ in channels), max(high for _, high in channels)]
