"""Weights whose integers no kernel can saturate on: scales chosen for it, and roundings mended.

Integers lie in [-127, 127], and the like-signed ones of each pair add up to at most 128 (`pairs`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional as F  # noqa: N812

from lighten_service.worker.integers.pairs import INTEGER_LIMIT, PAIR_LIMIT, Order

# Engines and exporters may round a value that close to a tie to either side.
_TIE: Final = 1e-4
# Single precision scales a little larger than they were computed.
_MARGIN: Final = 1 + 2.0**-22


@torch.no_grad()
def bounded(integers: torch.Tensor, scaled: torch.Tensor, orders: Sequence[Order]) -> torch.Tensor:
    """Return integers that obey the bound of pairs, no larger than before in magnitude.

    Of a pair that passes it, both give way such that their squared distance to the weights is
    least.

    Args:
        integers: in [-127, 127], in the shape of the weight.
        scaled: the weight in units of its scale.
        orders: of every kernel that reads the weight.
    """
    for order in orders:
        pairs = _pairs(order.rows(integers))
        if not bool(_broken(pairs).any()):
            continue
        mended = _mended(pairs, _pairs(order.rows(scaled)))
        integers = order.restored(_unpaired(mended, order.width), integers.shape)
    return integers


@torch.no_grad()
def lowered(
    integers: torch.Tensor, cost: torch.Tensor, orders: Sequence[Order]
) -> torch.Tensor | None:
    """Return integers in which each pair that passes the bound has one of its values closer to zero
    by one, the one that costs less; None where no pair does. ``cost``: of that, for each value."""
    found = None
    for order in orders:
        pairs = _pairs(order.rows(integers if found is None else found))
        broken = _broken(pairs)
        if bool(broken.any()):
            cheaper = _pairs(order.rows(cost)).argmin(1, keepdim=True)
            step = torch.zeros_like(pairs).scatter_(1, cheaper, 1) * broken[:, None]
            pairs = pairs - step * torch.sign(pairs)
            found = order.restored(_unpaired(pairs, order.width), integers.shape)
    return found


@torch.no_grad()
def kept_bounded(
    weight: torch.Tensor, scale: torch.Tensor, orders: Sequence[Order]
) -> torch.Tensor:
    """Return the weight with those values moved that would break the bound, however ties are
    rounded; the same tensor where there are none. ``scale`` broadcasts over the weight."""
    scaled = weight / scale
    rounded = _rounded_up(scaled)
    integers = bounded(rounded.clamp(-INTEGER_LIMIT, INTEGER_LIMIT), scaled, orders)
    # Above the grid every engine cuts off by itself; below it there is one integer more.
    moved = integers != rounded.clamp(max=INTEGER_LIMIT)
    return torch.where(moved, integers * scale, weight) if bool(moved.any()) else weight


@torch.no_grad()
def bounded_scale(
    weight: torch.Tensor, scale: torch.Tensor, orders: Sequence[Order]
) -> torch.Tensor:
    """Return the smallest scales, none below the present ones, with which nearest rounding obeys
    the bound, however ties are rounded.

    A range that holds all of its weights with -128 goes on to hold them with -127; one that cuts
    weights off cuts them off at 127 on both sides.

    Args:
        weight: not rounded.
        scale: positive, of a symmetric grid; one value, or one for each index of some axis.
        orders: of every kernel that reads the weight.
    """
    index = torch.arange(scale.numel(), device=scale.device).reshape(scale.shape)
    index = index.expand(weight.shape)
    found = _with_127(weight, scale.flatten().double(), index)
    while pairs := [pair for order in orders for pair in _critical(order, weight, index, found)]:
        before = found.clone()
        for pair in pairs:
            _grow(found, pair)
        if bool((found == before).all()):
            break
    single = found.float()
    single = torch.where(found > scale.flatten(), single * _MARGIN, scale.flatten())
    return single.reshape(scale.shape)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Like-signed neighbours that could pass the bound: their magnitudes and the number of each
    one's scale, [pairs, 2]."""

    values: torch.Tensor
    index: torch.Tensor


def _with_127(weight: torch.Tensor, scale: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    largest = torch.zeros_like(scale).scatter_reduce_(
        0, index.flatten(), weight.abs().double().flatten(), "amax"
    )
    held = largest <= scale * (128 + _TIE)
    return torch.where(held, torch.maximum(scale, largest / INTEGER_LIMIT), scale)


def _critical(
    order: Order, weight: torch.Tensor, index: torch.Tensor, scale: torch.Tensor
) -> Iterator[_Pair]:
    """Yield the pairs that pass the bound with these scales, or may with larger ones."""
    values, numbers = _pairs(order.rows(weight)), _pairs(order.rows(index))
    scaled = values.double() / scale[numbers]
    # Rounding adds at most one half to each.
    near = _alike(values) & (scaled.abs().sum(1) > PAIR_LIMIT - 1 - 2 * _TIE)
    if bool(near.any()) and bool(_broken(_clipped(scaled[near])).any()):
        yield _Pair(values[near].abs().double(), numbers[near])


def _grow(scale: torch.Tensor, pair: _Pair) -> None:
    """Raise scales, in place, step by step until every pair obeys."""
    while True:
        scaled = pair.values / scale[pair.index]
        integers = _clipped(scaled)
        broken = integers.sum(1) > PAIR_LIMIT
        if not bool(broken.any()):
            return
        values, index, integers = pair.values[broken], pair.index[broken], integers[broken]
        # The next scale at which a value rounds to one less, and the nearer one of both values.
        wanted = values / (integers - 0.5 - 2 * _TIE)
        nearer = (wanted / scale[index]).argmin(1, keepdim=True)
        wanted, index = wanted.gather(1, nearer).flatten(), index.gather(1, nearer).flatten()
        scale.scatter_reduce_(0, index, wanted, "amax")


def _clipped(scaled: torch.Tensor) -> torch.Tensor:
    return _rounded_up(scaled).clamp(-INTEGER_LIMIT, INTEGER_LIMIT)


def _rounded_up(scaled: torch.Tensor) -> torch.Tensor:
    """Round to nearest; what is close to a tie away from zero."""
    return torch.sign(scaled) * torch.floor(scaled.abs() + (0.5 + _TIE))


def _pairs(rows: torch.Tensor) -> torch.Tensor:
    """Return neighbours of rows [rows, K] as [pairs, 2]; the last of an odd K with a zero."""
    return F.pad(rows, (0, rows.shape[1] % 2)).reshape(-1, 2)


def _unpaired(pairs: torch.Tensor, width: int) -> torch.Tensor:
    return pairs.reshape(-1, width + width % 2)[:, :width]


def _alike(pairs: torch.Tensor) -> torch.Tensor:
    return torch.sign(pairs[:, 0]) * torch.sign(pairs[:, 1]) > 0


def _broken(integers: torch.Tensor) -> torch.Tensor:
    return _alike(integers) & (integers.abs().sum(1) > PAIR_LIMIT)


def _mended(integers: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    broken = _broken(integers)
    sizes, wanted = integers[broken].abs(), scaled[broken].abs()
    # The nearest point whose sum is the limit lies half of the excess below each.
    excess = (wanted.sum(1) - PAIR_LIMIT).clamp_min(0) / 2
    first = (wanted[:, 0] - excess).round().clamp(PAIR_LIMIT - INTEGER_LIMIT, INTEGER_LIMIT)
    lower = torch.stack([first, PAIR_LIMIT - first], dim=1)
    mended = integers.clone()
    mended[broken] = torch.minimum(lower, sizes) * torch.sign(integers[broken])
    return mended
