"""What is found out about one weight: verdicts for x86 and for ARM, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.integers.pairs import INTEGER_LIMIT, PAIR_LIMIT
from lighten_service.worker.integers.products import IntegerProduct, Operand
from lighten_service.worker.integers.weights import Weight, pair_sums

Verdict: TypeAlias = pb.IntegerVerdict.ValueType

BOUNDED: Final = pb.INTEGER_VERDICT_BOUNDED
EXACT: Final = pb.INTEGER_VERDICT_EXACT_IN_RUNTIME
NOT_PROVABLE: Final = pb.INTEGER_VERDICT_NOT_PROVABLE
SATURATES: Final = pb.INTEGER_VERDICT_SATURATES
# A fault that is known is worse than what is not known.
_FROM_STRONGEST: Final = (BOUNDED, EXACT, NOT_PROVABLE, SATURATES)
_LISTED: Final = 100


def weakest(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the weakest one; BOUNDED of none."""
    return max(verdicts, key=_FROM_STRONGEST.index, default=BOUNDED)


@dataclass(slots=True)
class Finding:
    """One weight, or an operator that multiplies integers which are no constants."""

    layer: str
    weight: str
    op: str
    x86: Verdict = BOUNDED
    arm: Verdict = BOUNDED
    # Output channels whose pairs pass the limit, and how many there are.
    broken: set[int] = field(default_factory=set)
    channels: int = 0
    largest_pair: int = 0
    lowest_count: int = 0
    notes: list[str] = field(default_factory=list)
    blamed: bool = False

    @property
    def verdict(self) -> Verdict:
        return weakest((self.x86, self.arm))

    @property
    def proven(self) -> bool:
        return self.verdict in (BOUNDED, EXACT)

    def not_provable(self, why: str, *, x86: bool = True, arm: bool = True) -> None:
        """Note that nothing is known on these CPUs."""
        self.x86 = weakest((self.x86, NOT_PROVABLE)) if x86 else self.x86
        self.arm = weakest((self.arm, NOT_PROVABLE)) if arm else self.arm
        if why not in self.notes:
            self.notes.append(why)

    def add_pairs(self, product: IntegerProduct) -> bool:
        """Look at the pairs that a kernel for x86 adds up of the right side, which is known; return
        whether they pass the limit."""
        values = product.right.values
        if values is None or not values.size or (order := product.order(values.shape)) is None:
            return False
        channels = product.channels(values.shape)
        sums = pair_sums(order.rows(values)).reshape(-1, channels).max(0, initial=0)
        broken = np.flatnonzero(sums > PAIR_LIMIT).tolist()
        if broken:
            self.x86 = SATURATES
            self.broken.update(broken)
            self.channels = max(self.channels, channels)
            self.largest_pair = max(self.largest_pair, int(sums.max()))
        return bool(broken)

    def add_lowest(self, side: Operand) -> bool:
        """Look for integers that overflow on ARM on a side that is known; return whether there are
        any."""
        count = _lowest(side.values) if side.signed is not False else 0
        if count:
            self.arm = SATURATES
            self.lowest_count = max(self.lowest_count, count)
        return count > 0

    def blame(self, layer: str, op: str) -> None:
        """Name the operator at fault, of several that read the weight; the first one stays."""
        if not self.blamed:
            self.layer, self.op, self.blamed = layer, op, True

    def message(self) -> pb.UnprovenWeight:
        return pb.UnprovenWeight(
            layer=self.layer,
            weight=self.weight,
            op=self.op,
            x86=self.x86,
            arm=self.arm,
            channel_count=len(self.broken),
            channels=sorted(self.broken)[:_LISTED],
            largest_pair=self.largest_pair,
            lowest_count=self.lowest_count,
            reason="; ".join(self._reasons()),
        )

    def _reasons(self) -> Iterable[str]:
        if self.broken:
            yield (
                f"pairs of up to {self.largest_pair} in {len(self.broken)} of {self.channels} "
                "channels"
            )
        if self.lowest_count:
            yield f"integers of -128: {self.lowest_count}"
        yield from self.notes


def of_integers(places: Sequence[Weight]) -> Finding:
    """Return what the integers alone prove, read in these places: BOUNDED, or else what holds as
    long as no integer kernel is found that reads them, EXACT_IN_RUNTIME."""
    use = places[0].uses[0]
    found = Finding(use.node.name or use.node.output[0], places[0].tensor, use.node.op_type)
    known = all(place.bits == 8 and not place.blockwise for place in places)
    found.x86 = BOUNDED if known and all(map(_bounded, places)) else EXACT
    found.arm = BOUNDED if known and not any(map(_has_lowest, places)) else EXACT
    return found


def _bounded(place: Weight) -> bool:
    """Whether no kernel can saturate: in none of the orders, or whatever the order is."""
    if not place.signed or place.integers.size == 0:
        return True
    low, high = int(place.integers.min()), int(place.integers.max())
    if max(-low, high) * 2 <= PAIR_LIMIT:
        return True
    orders = {use.order for use in place.uses}
    return all(
        order is not None and pair_sums(order.rows(place.integers)).max() <= PAIR_LIMIT
        for order in orders
    )


def _has_lowest(place: Weight) -> bool:
    return place.signed and _lowest(place.integers) > 0


def _lowest(values: NDArray[Any] | None) -> int:
    """Return how many integers there are that are not safe on ARM."""
    return 0 if values is None else int(np.count_nonzero(values < -INTEGER_LIMIT))
