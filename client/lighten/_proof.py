"""What a proof of exact integer arithmetic says, for a person."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lighten import v1 as pb

_PROVEN: Final = (pb.INTEGER_VERDICT_BOUNDED, pb.INTEGER_VERDICT_EXACT_IN_RUNTIME)
# Two like-signed neighbours that add up to no more never saturate on x86.
_PAIR_LIMIT: Final = 128
_VERDICTS: Final[dict[pb.IntegerVerdict.ValueType, str]] = {
    pb.INTEGER_VERDICT_BOUNDED: "bounded",
    pb.INTEGER_VERDICT_EXACT_IN_RUNTIME: "exact in the runtime",
    pb.INTEGER_VERDICT_SATURATES: "saturates",
    pb.INTEGER_VERDICT_NOT_PROVABLE: "not provable",
}


@dataclass(frozen=True, slots=True)
class Half:
    """What is proven of one family of CPUs. ``finding`` follows its name in a sentence."""

    cpus: str
    proven: bool
    finding: str


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family is spoken of: when it is exact, how it fails, and what makes a weight worse."""

    name: str
    exact: str
    fails: str
    verdict: Callable[[pb.IntegerProof | pb.UnprovenWeight], pb.IntegerVerdict.ValueType]
    size: Callable[[pb.UnprovenWeight], int]
    sized: str


_X86: Final = _Family(
    "x86",
    "is exact with and without VNNI",
    "saturates without VNNI",
    lambda one: one.x86,
    lambda one: one.largest_pair,
    f"a pair of {{}}, limit {_PAIR_LIMIT}",
)
_ARM: Final = _Family(
    "ARM",
    "is exact with and without dot product",
    "can overflow",
    lambda one: one.arm,
    lambda one: one.lowest_count,
    "integers of -128: {}",
)


def is_proven(proof: pb.IntegerProof) -> bool:
    """Return whether the file gives the same integer sums on every CPU."""
    return all(half.proven for half in halves(proof))


def describe(proof: pb.IntegerProof) -> str:
    """Return the proof in one line."""
    if is_proven(proof):
        return f"exact on every CPU: {counts(proof)}"
    findings = (f"{half.cpus} {half.finding}" for half in halves(proof) if not half.proven)
    return f"not proven: {'; '.join(findings)}"


def halves(proof: pb.IntegerProof) -> tuple[Half, ...]:
    """Return what is proven of x86, and of ARM."""
    return tuple(_half(proof, family) for family in (_X86, _ARM))


def counts(proof: pb.IntegerProof) -> str:
    """Return how many weights are proven, and by what."""
    if not proof.weights:
        return "no 8-bit weights"
    parts = [f"{proof.bounded} of {proof.weights} weights bounded"]
    if proof.exact_in_runtime:
        parts.append(f"{proof.exact_in_runtime} exact in {proof.runtime}")
    if proof.unproven:
        parts.append(f"{proof.unproven} not proven")
    return ", ".join(parts)


def verdict_name(verdict: pb.IntegerVerdict.ValueType) -> str:
    return _VERDICTS.get(verdict, "unknown")


def _half(proof: pb.IntegerProof, family: _Family) -> Half:
    if family.verdict(proof) in _PROVEN:
        return Half(family.name, True, family.exact)
    findings = ", and ".join(_failures(proof, family))
    return Half(family.name, False, findings or "is not proven")


def _failures(proof: pb.IntegerProof, family: _Family) -> Iterator[str]:
    if found := _with(proof, family, pb.INTEGER_VERDICT_SATURATES):
        worst = max(found, key=family.size)
        how = family.sized.format(family.size(worst))
        yield f"{family.fails} in {_of_all(found, proof)}, worst in {worst.layer} ({how})"
    if found := _with(proof, family, pb.INTEGER_VERDICT_NOT_PROVABLE):
        first = found[0]
        yield f"is not provable in {_of_all(found, proof)}, first in {first.layer} ({first.reason})"


def _with(
    proof: pb.IntegerProof, family: _Family, verdict: pb.IntegerVerdict.ValueType
) -> Sequence[pb.UnprovenWeight]:
    return [one for one in proof.details if family.verdict(one) == verdict]


def _of_all(found: Sequence[pb.UnprovenWeight], proof: pb.IntegerProof) -> str:
    """Return how many weights, of how many; the proof has details of the first ones alone."""
    least = "at least " if len(proof.details) < proof.unproven else ""
    return f"{least}{len(found)} of {proof.weights} weights"
