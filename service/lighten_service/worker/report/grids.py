"""Widths and grids of every quantized tensor."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lighten_service.worker.model import Encoding
from lighten_service.worker.report import charts, words
from lighten_service.worker.report.charts import Plot


@dataclass(frozen=True, slots=True)
class GridRow:
    tensor: str
    kind: str
    bits: int
    grid: str
    scales: str
    range: str


@dataclass(frozen=True, slots=True)
class GridsView:
    summary: str
    rows: Sequence[GridRow]
    # Where widths are mixed.
    chart: Plot | None


def grids(encodings: Sequence[Encoding]) -> GridsView | None:
    if not encodings:
        return None
    return GridsView(
        summary=", ".join(_summary(encodings)),
        rows=[_row(encoding) for encoding in encodings],
        chart=_chart(encodings),
    )


def _summary(encodings: Sequence[Encoding]) -> Iterator[str]:
    for is_weight, noun in ((True, "weight"), (False, "activation")):
        widths = Counter(item.bits for item in encodings if item.is_weight == is_weight)
        for bits, number in sorted(widths.items()):
            yield f"{words.plural(number, noun)} in {bits} bits"


def _row(item: Encoding) -> GridRow:
    low, high = item.bounds
    return GridRow(
        tensor=item.tensor,
        kind="weight" if item.is_weight else "activation",
        bits=item.bits,
        grid=_grid(item),
        scales=words.count(len(item.scales)),
        range=f"{words.number(low)} to {words.number(high)}",
    )


def _grid(item: Encoding) -> str:
    if item.is_float:
        return "floating point"
    symmetry = "symmetric" if item.symmetric else "asymmetric"
    return f"{symmetry}, {'signed' if item.signed else 'unsigned'}"


def _chart(encodings: Sequence[Encoding]) -> Plot | None:
    kinds = (True, "weight"), (False, "activation")
    mixed = any(
        len({item.bits for item in encodings if item.is_weight == is_weight}) > 1
        for is_weight, _ in kinds
    )
    if not mixed:
        return None
    widths = sorted({item.bits for item in encodings})
    scale = charts.Scale(0, max(widths))
    total = len(encodings)
    return Plot(
        title="Bits of each tensor",
        description=", ".join(_summary(encodings)),
        unit="bits",
        y_ticks=[charts.Tick(charts.percent_y(scale.y(bits)), str(bits)) for bits in (0, *widths)],
        x_ticks=charts.ordinals(total),
        marks=[
            charts.dot(
                charts.middle(at, total),
                scale.y(item.bits),
                "weight" if item.is_weight else "activation",
                f"{item.tensor}: {item.bits} bits",
            )
            for at, item in enumerate(encodings)
        ],
        legend=[("weight", "weights"), ("activation", "activations")],
    )
