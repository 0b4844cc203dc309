"""What is proven of the QDQ file's integer arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from lighten import _proof
from lighten import v1 as pb


@dataclass(frozen=True, slots=True)
class WeightRow:
    """A weight that is not proven. ``channels``: numbers of those that saturate on x86."""

    layer: str
    op: str
    x86: str
    arm: str
    reason: str
    channels: str


@dataclass(frozen=True, slots=True)
class ProofView:
    counts: str
    halves: Sequence[_proof.Half]
    rows: Sequence[WeightRow]
    # Some weights that are not proven have no row.
    more: bool
    not_tested: str


def proof(found: pb.IntegerProof) -> ProofView:
    return ProofView(
        counts=_proof.counts(found),
        halves=_proof.halves(found),
        rows=[_row(item) for item in found.details],
        more=len(found.details) < found.unproven,
        not_tested="; ".join(found.not_tested),
    )


def _row(item: pb.UnprovenWeight) -> WeightRow:
    more = ", ..." if len(item.channels) < item.channel_count else ""
    return WeightRow(
        layer=item.layer,
        op=item.op,
        x86=_proof.verdict_name(item.x86),
        arm=_proof.verdict_name(item.arm),
        reason=item.reason,
        channels=", ".join(map(str, item.channels)) + more,
    )
