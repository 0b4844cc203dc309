"""Which layers can have blockwise weights, the same for both engines."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

_BLOCKWISE = frozenset({pb.GRANULARITY_BLOCKWISE, pb.GRANULARITY_LOW_POWER_BLOCKWISE})
# Width of the scales of low-power blocks, multiplied out.
LOW_POWER_BITS = 8
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Weighted:
    """A layer with a quantized weight. ``plain``: a matrix product, or a 1x1 convolution without
    groups; ``inputs``: its input channels."""

    name: str
    plain: bool
    inputs: int


def is_blockwise(quantization: pb.QuantizationConfig) -> bool:
    """Say whether weights have a scale for each block of input channels."""
    return quantization.weight_granularity in _BLOCKWISE


def require_blocks(layers: Iterable[Weighted], block_size: int) -> Collection[str]:
    """Return the names of the layers, all of which can have blocks of this size.

    Raises:
        InvalidArgument: BLOCKWISE_NOT_APPLICABLE, with the layers that cannot.
    """
    layers = tuple(layers)
    other = [layer.name for layer in layers if not layer.plain]
    uneven = [layer.name for layer in layers if layer.plain and layer.inputs % block_size]
    if not other and not uneven:
        return [layer.name for layer in layers]
    reasons = []
    if other:
        reasons.append(f"{_first(other)} are no linear layers or 1x1 convolutions without groups")
    if uneven:
        reasons.append(
            f"blocks of {block_size} do not divide the input channels of {_first(uneven)}"
        )
    raise InvalidArgument(
        "BLOCKWISE_NOT_APPLICABLE",
        f"not every layer can have blockwise weights: {'; '.join(reasons)}. Give these a type of "
        "their own in plan.quantization.overrides, by which they keep one scale a channel, or "
        "leave them in float there; or choose another granularity",
        field="plan.quantization.weight_granularity",
    )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
