"""What a proof says in a line."""

import pytest

from lighten import v1 as pb
from lighten._proof import counts, describe, halves, is_proven
from tests.support import report_sample

BOUNDED = pb.INTEGER_VERDICT_BOUNDED
IN_RUNTIME = pb.INTEGER_VERDICT_EXACT_IN_RUNTIME
SATURATES = pb.INTEGER_VERDICT_SATURATES
NOT_PROVABLE = pb.INTEGER_VERDICT_NOT_PROVABLE


def proof(
    x86: pb.IntegerVerdict.ValueType, arm: pb.IntegerVerdict.ValueType, **fields
) -> pb.IntegerProof:
    return pb.IntegerProof(x86=x86, arm=arm, runtime="onnxruntime 1.31.1", **fields)


def test_what_is_proven_is_counted() -> None:
    bounded = proof(BOUNDED, BOUNDED, weights=53, bounded=53)
    assert is_proven(bounded)
    assert describe(bounded) == "exact on every CPU: 53 of 53 weights bounded"
    mixed = proof(IN_RUNTIME, BOUNDED, weights=53, bounded=36, exact_in_runtime=17)
    assert is_proven(mixed)
    assert describe(mixed) == (
        "exact on every CPU: 36 of 53 weights bounded, 17 exact in onnxruntime 1.31.1"
    )
    assert describe(proof(BOUNDED, BOUNDED)) == "exact on every CPU: no 8-bit weights"


@pytest.mark.parametrize(
    ("x86", "arm"),
    [(SATURATES, BOUNDED), (BOUNDED, SATURATES), (NOT_PROVABLE, IN_RUNTIME), (0, 0)],
)
def test_one_half_alone_is_no_proof(
    x86: pb.IntegerVerdict.ValueType, arm: pb.IntegerVerdict.ValueType
) -> None:
    found = proof(x86, arm, weights=1)
    assert not is_proven(found)
    assert describe(found).startswith("not proven: ")


def test_each_half_that_fails_names_its_worst_weight() -> None:
    assert describe(report_sample.proof()) == (
        "not proven: "
        "x86 saturates without VNNI in 1 of 53 weights, worst in features.2.conv.2 "
        "(a pair of 201, limit 128); "
        "ARM can overflow in 2 of 53 weights, worst in features.1.conv.0.0 "
        "(integers of -128: 3)"
    )
    alone = report_sample.proof()
    alone.arm = BOUNDED
    assert "ARM" not in describe(alone)


def test_what_cannot_be_proven_says_why() -> None:
    found = report_sample.proof()
    found.x86, found.arm, found.unproven = NOT_PROVABLE, BOUNDED, 3
    found.details.add(
        layer="attention", op="MatMul", x86=NOT_PROVABLE, arm=BOUNDED, reason="it is an input"
    )
    x86, _ = halves(found)
    assert x86.finding == (
        "saturates without VNNI in 1 of 53 weights, worst in features.2.conv.2 "
        "(a pair of 201, limit 128), "
        "and is not provable in 1 of 53 weights, first in attention (it is an input)"
    )


def test_beyond_the_details_counts_are_least_ones() -> None:
    found = report_sample.proof()
    found.unproven = 48
    assert "saturates without VNNI in at least 1 of 53 weights" in describe(found)
    assert counts(found).endswith(", 48 not proven")
