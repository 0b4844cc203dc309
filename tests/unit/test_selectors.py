"""Which operators a selector finds."""

import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.selectors import selected

OPERATORS = [
    ("features.0", "Conv"),
    ("features.1", "Relu"),
    ("features.10", "Conv"),
    ("head[0]", "Gemm"),
]


@pytest.mark.parametrize(
    ("layers", "op_types", "found"),
    [
        (["features.?"], [], {"features.0", "features.1"}),
        (["features*"], ["Conv"], {"features.0", "features.10"}),
        ([], ["Gemm", "Relu"], {"head[0]", "features.1"}),
        (["features.0", "head[0]"], [], {"features.0", "head[0]"}),
        (["*"], [], {name for name, _ in OPERATORS}),
    ],
)
def test_an_operator_is_in_each_list_that_is_set(
    layers: list[str], op_types: list[str], found: set[str]
) -> None:
    selector = pb.LayerSelector(layers=layers, op_types=op_types)

    assert selected(selector, OPERATORS, "field") == found


@pytest.mark.parametrize(
    ("layers", "op_types"), [(["Features*"], []), (["features*"], ["Gemm"]), ([], [])]
)
def test_a_selector_that_finds_nothing_says_what_there_is(
    layers: list[str], op_types: list[str]
) -> None:
    selector = pb.LayerSelector(layers=layers, op_types=op_types)
    with pytest.raises(InvalidArgument) as caught:
        selected(selector, OPERATORS, "plan.quantization.overrides[3].select")

    assert caught.value.reason == "SELECTOR_MATCHES_NOTHING"
    assert caught.value.field == "plan.quantization.overrides[3].select"
    assert "features.10" in caught.value.message
    assert "Conv, Gemm, Relu" in caught.value.message
