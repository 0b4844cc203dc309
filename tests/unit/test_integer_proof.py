"""What is proven of integers and of the kernels that ONNX Runtime has for them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.integers.proof import describe, is_proven, prove, prove_model
from tests.support import kernel_forms as kf
from tests.support.onnx_models import mobile_net
from tests.support.quantized_graphs import QuantizedBuilder, full, product, within_bound

BOUNDED = pb.INTEGER_VERDICT_BOUNDED
EXACT = pb.INTEGER_VERDICT_EXACT_IN_RUNTIME
SATURATES = pb.INTEGER_VERDICT_SATURATES
NOT_PROVABLE = pb.INTEGER_VERDICT_NOT_PROVABLE

FORMS = {form.name: form for form in kf.FORMS}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> kf.Form:
    return FORMS[request.param]


def proof_of(form: kf.Form, weight: kf.Integers) -> pb.IntegerProof:
    codes = kf.any_codes(form, np.random.default_rng(1))
    return prove_model(kf.case_of([kf.Layer(form, codes, weight)]).model)


def verdicts(model: onnx.ModelProto) -> tuple[int, int]:
    """Return those of x86 and ARM."""
    proof = prove_model(model)
    return proof.x86, proof.arm


# --- every form ---------------------------------------------------------------------------------


def test_weights_at_the_bound_are_proven(form: kf.Form) -> None:
    proof = proof_of(form, kf.bounded_weight(form, np.random.default_rng(0)))
    assert is_proven(proof)
    assert proof.arm == BOUNDED
    if form.pairs or form.grid.unsigned_weight:
        assert proof.x86 == BOUNDED
    assert not proof.details


def test_one_pair_beyond_the_bound_is_found(form: kf.Form) -> None:
    proof = proof_of(form, kf.with_pair_over(form, np.random.default_rng(0)))
    if not form.pairs:
        assert is_proven(proof)
        return
    (weight,) = proof.details
    assert (proof.x86, proof.unproven) == (SATURATES, 1)
    assert (weight.largest_pair, weight.channel_count) == (129, len(weight.channels))
    assert weight.channel_count >= 1
    assert "pairs of up to 129" in weight.reason


def test_the_lowest_integer_is_not_safe_on_arm_unless_the_kernel_is(form: kf.Form) -> None:
    weight = kf.bounded_weight(form, np.random.default_rng(0))
    weight.flat[0] = -128
    proof = proof_of(form, weight)
    integer = form.pairs or form.name.startswith("depthwise")
    if form.grid.unsigned_weight or form.name == "matmul_of_data":
        assert proof.arm == BOUNDED
    elif integer and not form.grid.signed_data:
        assert proof.arm == SATURATES
        assert [item.lowest_count for item in proof.details] == [1]
        assert "integers of -128: 1" in proof.details[0].reason
    else:
        # Kernels for ARM take signed data only where outputs are signed, which are unsigned here.
        assert proof.arm == EXACT


# --- which integers -----------------------------------------------------------------------------


def test_seven_bits_are_bounded_whatever_the_kernel_is() -> None:
    b = QuantizedBuilder()
    image = b.data("image", 1, 4, 8, 8)
    depthwise = b.integers("depthwise", within_bound(4, 1, 3, 3), axis=0)
    x = b.quantized(b.add("Conv", [image, depthwise], "first", group=4), "first")
    b.result(b.add("ConvTranspose", [x, b.integers("up", within_bound(4, 2, 2, 2))], "second"))
    proof = prove_model(b.build())
    assert (proof.x86, proof.arm) == (BOUNDED, BOUNDED)
    assert (proof.weights, proof.bounded) == (2, 2)
    assert len(proof.not_tested) == 2


def test_the_zero_point_of_a_weight_changes_nothing() -> None:
    b = QuantizedBuilder()
    weight = b.integers("weight", within_bound(6, 4), zero_point=-20)
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), weight], "layer"), "y"))
    assert verdicts(b.build()) == (BOUNDED, BOUNDED)


def test_channels_are_those_of_the_output() -> None:
    integers = np.zeros((2, 6, 5), np.int8)
    integers[1, 2:4, 3] = 100
    stacked = product(integers)
    transposed = np.zeros((5, 6), np.int8)
    transposed[4, :2] = -90
    for model, channel, pair in (
        (stacked, 3, 200),
        (product(transposed, "Gemm", transB=1), 4, 180),
    ):
        (weight,) = prove_model(model).details
        assert (weight.layer, weight.weight) == ("layer", "weight")
        assert list(weight.channels) == [channel]
        assert weight.largest_pair == pair


def test_operators_without_names_are_called_by_what_they_write() -> None:
    model = product(full(6, 4))
    for node in model.graph.node:
        node.ClearField("name")
    (weight,) = prove_model(model).details
    assert (weight.layer, weight.op) == ("layer", "MatMul")


def test_of_many_channels_a_hundred_are_named() -> None:
    (weight,) = prove_model(product(np.full((2, 130), 100, np.int8))).details
    assert weight.channel_count == 130
    assert list(weight.channels) == [*range(100)]


# --- readers ------------------------------------------------------------------------------------


def along_rows() -> np.ndarray:
    """Return integers whose neighbours in a row pass the bound, and in a column do not."""
    integers = np.zeros((6, 6), np.int8)
    integers[2, :2] = 100
    return integers


def test_a_tied_weight_must_suit_each_of_its_readers() -> None:
    def tied(*transposed: int) -> onnx.ModelProto:
        b = QuantizedBuilder()
        x, weight = b.data("x", 2, 6), b.integers("weight", along_rows())
        for number, turned in enumerate(transposed):
            layer = b.add("Gemm", [x, weight], f"layer{number}", transB=turned)
            b.result(b.quantized(layer, f"y{number}"))
        return b.build()

    assert verdicts(tied(0, 0)) == (BOUNDED, BOUNDED)
    proof = prove_model(tied(0, 1))
    assert (proof.x86, proof.arm, proof.weights) == (SATURATES, BOUNDED, 1)
    assert proof.details[0].layer == "layer1"


@pytest.mark.parametrize(
    ("op", "attributes", "constant", "verdict"),
    [
        ("Transpose", {"perm": [1, 0]}, None, SATURATES),
        ("Identity", {}, None, BOUNDED),
        # ONNX Runtime computes these in float.
        ("Reshape", {}, [6, 6], EXACT),
        ("Squeeze", {}, [0], EXACT),
        ("Unsqueeze", {}, [0], EXACT),
    ],
)
def test_what_moves_a_weight_is_followed(
    op: str, attributes: dict[str, Any], constant: list[int] | None, verdict: int
) -> None:
    b = QuantizedBuilder()
    integers = along_rows() if verdict != EXACT else along_rows().T.copy()
    integers = integers[None] if op == "Squeeze" else integers
    inputs = [b.integers("weight", integers, axis=0 if op == "Transpose" else None)]
    if constant is not None:
        inputs.append(b.constant("constant", np.int64(constant)))
    moved = b.add(op, inputs, "moved", **attributes)
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), moved], "layer"), "y"))
    proof = prove_model(b.build())
    assert (proof.x86, proof.weights) == (verdict, 1)


def test_a_weight_that_is_quantized_in_the_graph_is_a_weight() -> None:
    b = QuantizedBuilder()
    b.constant("float", along_rows().T.astype(np.float32) / 64)
    grid = [b.constant("s", np.float32(1 / 64)), b.constant("z", np.int8(0))]
    codes = b.add("QuantizeLinear", ["float", *grid], "codes")
    weight = b.add("DequantizeLinear", [codes, *grid], "values")
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), weight], "layer"), "y"))
    proof = prove_model(b.build())
    assert (proof.x86, proof.weights, proof.details[0].largest_pair) == (SATURATES, 1, 200)


def test_weights_in_branches_are_looked_at() -> None:
    def branch(name: str, integers: np.ndarray) -> onnx.GraphProto:
        b = QuantizedBuilder()
        x, weight = b.quantized("x", f"{name}.x"), b.integers(f"{name}.weight", integers)
        b.result(b.quantized(b.add("MatMul", [x, weight], f"{name}.layer"), name))
        return b.build().graph

    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]))
    b.inputs.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    branches = {
        "then_branch": branch("good", within_bound(6, 4)),
        "else_branch": branch("bad", full(6, 4)),
    }
    b.result(b.add("If", ["yes"], "chosen", **branches))
    proof = prove_model(b.build())
    assert (proof.x86, proof.weights, proof.bounded) == (SATURATES, 2, 1)
    assert [item.layer for item in proof.details] == ["bad.layer"]


def test_weights_in_functions_are_looked_at() -> None:
    weight = helper.make_node("DequantizeLinear", ["codes", "scale"], ["values"], name="dequantize")
    times = helper.make_node("MatMul", ["x", "values"], ["y"], name="times")
    opset = [helper.make_opsetid("", 21)]
    function = helper.make_function(
        "own", "Linear", ["x", "codes", "scale"], ["y"], [weight, times], opset
    )
    b = QuantizedBuilder()
    constants = [b.constant("w", full(6, 4)), b.constant("w_scale", np.float32(1))]
    node = helper.make_node(
        "Linear", [b.data("x", 2, 6), *constants], ["z"], "linear", domain="own"
    )
    b.nodes.append(node)
    b.result(b.quantized("z", "y"))
    proof = prove_model(b.build([function]))
    assert (proof.x86, proof.arm, proof.weights) == (SATURATES, SATURATES, 1)


# --- what depends on data -----------------------------------------------------------------------


def of_data(left: type[Any], right: type[Any], *, moved: bool = False) -> onnx.ModelProto:
    b = QuantizedBuilder()
    data = b.data("x", 2, 6, dtype=left)
    b.inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [6, 6]))
    grid = [b.constant("s", np.float32(1)), b.constant("z", right(0))]
    codes = b.add("QuantizeLinear", ["other", *grid], "other.codes")
    codes = b.add("Transpose", [codes], "turned", perm=[1, 0]) if moved else codes
    b.result(b.add("MatMul", [data, b.add("DequantizeLinear", [codes, *grid], "v")], "layer"))
    return b.build()


@pytest.mark.parametrize(
    ("left", "right", "moved", "x86", "arm"),
    [
        (np.uint8, np.uint8, False, BOUNDED, BOUNDED),
        (np.int8, np.uint8, False, BOUNDED, BOUNDED),
        # Sessions on x86 make them unsigned, those on ARM do not.
        (np.int8, np.int8, False, EXACT, NOT_PROVABLE),
        (np.uint8, np.int8, False, EXACT, NOT_PROVABLE),
        # Nor do those on x86, where there is something between.
        (np.uint8, np.int8, True, NOT_PROVABLE, NOT_PROVABLE),
    ],
)
def test_a_product_of_data_is_proven_where_it_is_unsigned(
    left: type[Any], right: type[Any], moved: bool, x86: int, arm: int
) -> None:
    proof = prove_model(of_data(left, right, moved=moved))
    assert (proof.x86, proof.arm) == (x86, arm)
    assert proof.weights == proof.unproven == (arm == NOT_PROVABLE)


def test_integers_that_come_in_are_not_provable() -> None:
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("weight", TensorProto.INT8, [6, 4]))
    grid = [b.constant("s", np.float32(1)), b.constant("z", np.int8(0))]
    weight = b.add("DequantizeLinear", ["weight", *grid], "values")
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), weight], "layer"), "y"))
    proof = prove_model(b.build())
    assert (proof.x86, proof.arm, proof.unproven) == (NOT_PROVABLE, NOT_PROVABLE, 1)
    assert proof.details[0].layer == "layer"
    assert proof.details[0].op == "MatMul"
    assert "data" in proof.details[0].reason


def test_signed_data_have_their_own_kernels_on_each_side() -> None:
    b = QuantizedBuilder()
    data = b.data("x", 2, 6, dtype=np.int8)
    layer = b.add("MatMul", [data, b.integers("weight", full(6, 4))], "layer")
    b.result(b.quantized(layer, "y", np.int8))
    assert verdicts(b.build()) == (SATURATES, SATURATES)


# --- operators on integers ----------------------------------------------------------------------


def integer_product(data: type[Any], weight: np.ndarray, *, first: bool = False) -> onnx.ModelProto:
    """Return MatMulInteger of data and a weight, or of a weight and data."""
    b = QuantizedBuilder()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(data))
    shape = [weight.shape[1], 3] if first else [3, weight.shape[0]]
    b.inputs.append(helper.make_tensor_value_info("x", kind, shape))
    names = ["x", b.constant("weight", weight)]
    b.result(b.add("MatMulInteger", names[::-1] if first else names, "layer"), TensorProto.INT32)
    return b.build()


@pytest.mark.parametrize(
    ("model", "x86", "arm"),
    [
        (integer_product(np.uint8, full(6, 4)), SATURATES, SATURATES),
        (integer_product(np.uint8, within_bound(6, 4)), BOUNDED, BOUNDED),
        (integer_product(np.int8, full(6, 4)), EXACT, SATURATES),
        (integer_product(np.uint8, full(4, 6), first=True), EXACT, EXACT),
        (integer_product(np.int8, full(4, 6), first=True), EXACT, SATURATES),
        (
            integer_product(np.int8, full(4, 6).view(np.uint8), first=True),
            NOT_PROVABLE,
            NOT_PROVABLE,
        ),
    ],
    ids=["full", "bounded", "signed", "first", "first_signed", "first_unsigned"],
)
def test_operators_on_integers_pair_signed_ones_on_the_right(
    model: onnx.ModelProto, x86: int, arm: int
) -> None:
    assert verdicts(model) == (x86, arm)


def linear_convolution(integers: np.ndarray, group: int) -> onnx.ModelProto:
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 6, 6]))
    one, zero = b.constant("one", np.float32(1)), b.constant("zero", np.uint8(0))
    weight = [b.constant("weight", integers), one, b.constant("weight_zero", np.int8(0))]
    b.add("QLinearConv", ["x", one, zero, *weight, one, zero], "layer", group=group)
    b.result("layer", TensorProto.UINT8)
    return b.build()


def test_quantized_convolutions_are_judged_like_their_qdq_form() -> None:
    assert verdicts(linear_convolution(full(4, 4, 3, 3), 1)) == (SATURATES, SATURATES)
    assert verdicts(linear_convolution(full(4, 1, 3, 3), 4)) == (EXACT, SATURATES)
    assert verdicts(linear_convolution(within_bound(4, 4, 3, 3), 1)) == (BOUNDED, BOUNDED)


def test_nothing_is_claimed_of_operators_that_are_not_known() -> None:
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, 4]))
    inputs = [
        "x",
        b.constant("weight", within_bound(4, 12)),
        b.constant("bias", np.zeros(12, np.float32)),
        b.constant("x_scale", np.float32(1)),
        b.constant("weight_scale", np.float32(1)),
        "",
        b.constant("x_zero", np.uint8(0)),
        b.constant("weight_zero", np.int8(0)),
    ]
    b.result(b.contrib("QAttention", inputs, "layer", num_heads=2))
    proof = prove_model(b.build())
    assert (proof.x86, proof.arm, proof.unproven) == (NOT_PROVABLE, NOT_PROVABLE, 1)
    assert "QAttention" in proof.details[0].reason


# --- weights in blocks, in 4 bits, of float data ------------------------------------------------


def float_data(integers: np.ndarray, axis: int = 1) -> onnx.ModelProto:
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, len(integers)]))
    b.result(b.add("MatMul", ["x", b.integers("weight", integers, axis=axis)], "layer"))
    return b.build()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_kernels_that_quantize_data_as_they_run_are_not_provable(dtype: type[Any]) -> None:
    proof = prove_model(float_data(np.ones((32, 8), dtype)))
    assert (proof.x86, proof.arm, proof.unproven) == (NOT_PROVABLE, NOT_PROVABLE, 1)
    assert "MatMulNBits" in proof.details[0].reason
    assert (proof.details[0].layer, proof.details[0].weight) == ("layer", "weight")


def four_bits(op: str, shape: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    b = QuantizedBuilder()
    values = np.arange(np.prod(shape)) % 16 - 8
    b.initializers.append(helper.make_tensor("weight", TensorProto.INT4, shape, values))
    b.constant("weight_scale", np.ones(shape[attributes["axis"]], np.float32))
    names = ["weight", "weight_scale"]
    weight = b.add("DequantizeLinear", names, "values", **attributes)
    sizes = [1, shape[1], 6, 6] if op == "Conv" else [2, shape[0]]
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes))
    b.result(b.add(op, ["x", weight], "layer"))
    return b.build()


def test_weights_of_four_bits_count_where_data_become_integers() -> None:
    packed = prove_model(four_bits("MatMul", (32, 8), axis=1))
    assert (packed.x86, packed.weights, packed.unproven) == (NOT_PROVABLE, 1, 1)
    float_kernel = prove_model(four_bits("Conv", (4, 3, 3, 3), axis=0))
    assert (float_kernel.x86, float_kernel.weights) == (BOUNDED, 0)
    assert describe(float_kernel) == "exact on every CPU: no 8-bit weights"


@pytest.mark.parametrize(
    ("quantized", "verdict"), [(True, NOT_PROVABLE), (False, EXACT)], ids=["integer", "float"]
)
def test_blocks_are_proven_only_in_float(quantized: bool, verdict: int) -> None:
    b = QuantizedBuilder()
    b.constant("weight", within_bound(32, 4))
    b.constant("weight_scale", np.ones((2, 4), np.float32))
    names, attributes = ["weight", "weight_scale"], {"axis": 0, "block_size": 16}
    weight = b.add("DequantizeLinear", names, "values", **attributes)
    x = b.data("x", 2, 32)
    x = x if quantized else b.add("Relu", [x], "relu")
    b.result(b.quantized(b.add("MatMul", [x, weight], "layer"), "y"))
    assert verdicts(b.build()) == (verdict, verdict)


# --- files --------------------------------------------------------------------------------------


def test_a_file_with_external_data_is_proven(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        product(full(64, 32)), path, save_as_external_data=True, location="data", size_threshold=0
    )
    proof = prove(path)
    assert (proof.x86, proof.weights) == (SATURATES, 1)
    assert proof.runtime.startswith("onnxruntime ")
    assert [
        file.name for file in tmp_path.iterdir() if file.name not in ("model.onnx", "data")
    ] == []


def test_a_file_without_integers_has_nothing_to_prove(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mobile_net(), path)
    proof = prove(path)
    assert is_proven(proof)
    assert proof.weights == 0


def test_a_model_that_does_not_load_is_refused() -> None:
    model = product(full(6, 4))
    model.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(InvalidArgument) as caught:
        prove_model(model)
    assert caught.value.reason == "INVALID_MODEL"


def test_a_hundred_of_the_weights_are_listed_in_the_order_of_the_graph() -> None:
    b = QuantizedBuilder()
    x = b.data("x", 2, 2)
    # Weights stand in another order than their readers.
    weights = [b.integers(f"weight{i}", np.full((2, 2), 100, np.int8)) for i in range(120)]
    for number, weight in enumerate(reversed(weights)):
        b.result(b.quantized(b.add("MatMul", [x, weight], f"layer{number}"), f"y{number}"))
    proof = prove_model(b.build())
    assert (proof.weights, proof.unproven, len(proof.details)) == (120, 120, 100)
    assert [item.layer for item in proof.details] == [f"layer{number}" for number in range(100)]


def test_the_proof_needs_no_torch() -> None:
    script = (
        "import sys, lighten_service.worker.integers.check as check;"
        "sys.exit('torch' in sys.modules or 'aimet_onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
