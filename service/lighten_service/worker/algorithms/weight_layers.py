"""Which layers a step that chooses weights works on, and on which samples."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lighten import v1 as pb
from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.quantized import QuantizedModel, WeightGrid
from lighten_service.worker.samples import Head
from lighten_service.worker.selectors import selected

SHARED_WEIGHT = "it shares its weight with another layer"
_LISTED = 5


@dataclass(frozen=True, slots=True)
class WeightLayers:
    """``chosen``: grids of the weights to work on, by the layer's name, in execution order.
    ``left``: layers that were meant and cannot be worked on, with the reason."""

    chosen: dict[str, WeightGrid]
    left: dict[str, str]

    @property
    def reasons(self) -> str:
        """The layers left and why, for a person; a few names of each reason."""
        return listed_reasons(self.left)

    def reached(self, names: Collection[str]) -> "WeightLayers":
        """Leave out what a walk did not come to. ``names``: the layers that it did."""
        unreached = [name for name in self.chosen if name not in names]
        left = self.left | dict.fromkeys(unreached, "no calibration data reach it")
        return WeightLayers({name: self.chosen[name] for name in names}, left)


def choose_layers(
    quantized: QuantizedModel, selector: pb.LayerSelector | None, field: str
) -> WeightLayers:
    """Return the layers with an integer weight grid that a selector finds; all for None.

    A weight that several layers share is left at the first of them: what suits one need not suit
    the others.

    Raises:
        InvalidArgument: SELECTOR_MATCHES_NOTHING.
    """
    layers = quantized.layers()
    if selector is not None:
        names = selected(selector, [(layer.name, layer.op) for layer in layers], field)
        layers = tuple(layer for layer in layers if layer.name in names)
    chosen: dict[str, WeightGrid] = {}
    left: dict[str, str] = {}
    weights: set[str] = set()
    for layer in layers:
        grid = quantized.weight_grid(layer)
        if grid is None:
            left[layer.name] = "its weight has no integer grid of one scale, or one a channel"
        elif layer.weight and layer.weight in weights:
            left[layer.name] = "it shares its weight with a layer before it"
        else:
            chosen[layer.name] = grid
            weights.add(layer.weight)
    return WeightLayers(chosen, left)


def sharing_layers(quantized: QuantizedModel) -> frozenset[str]:
    """Return the names of the layers that share their weight with another."""
    layers = quantized.layers()
    uses = Counter(layer.weight for layer in layers if layer.weight)
    return frozenset(layer.name for layer in layers if uses[layer.weight] > 1)


def choose_samples(context: StepContext, limit: int, enough: int, purpose: str) -> Head:
    """Return the first ``limit`` calibration samples; warn TOO_FEW_SAMPLES below ``enough``.

    Raises:
        FailedPrecondition: MISSING_CALIBRATION_DATA.
    """
    samples = Head(required_calibration(context), limit)
    warn_if_few(context, samples, enough, purpose, "which may suit these better than others")
    return samples


def warn_if_few(
    context: StepContext, samples: Samples, enough: int, purpose: str, consequence: str
) -> None:
    """Warn TOO_FEW_SAMPLES below ``enough``: what is done on them, and what follows from that."""
    if samples.count < enough:
        context.warn(
            "TOO_FEW_SAMPLES",
            f"{purpose} on {samples.count} samples, {consequence}; {enough} would do",
        )


def listed_reasons(left: Mapping[str, str]) -> str:
    """Return reasons with a few of the layers that have each, for a person."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{_first(names)} ({reason})" for reason, names in by_reason.items())


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
