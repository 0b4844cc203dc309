"""The twin of a file: the same numbers from weights that are stored as unsigned integers."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.graphs.walk import array, constants
from lighten_service.worker.integers.proof import is_proven, prove_model
from lighten_service.worker.integers.saturation import saturates
from lighten_service.worker.integers.twin import unsigned_twin
from tests.support import kernel_forms as kf
from tests.support.quantized_graphs import QuantizedBuilder, full, product, within_bound

FORMS = {form.name: form for form in kf.FORMS}


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[Any]] = session.run(None, feeds)
    return found


def numbers(*shape: int) -> NDArray[np.float32]:
    """Return whole numbers that QuantizedBuilder's data stand for."""
    return np.random.default_rng(5).integers(-128, 128, shape).astype(np.float32)


def same(model: onnx.ModelProto, twin: onnx.ModelProto, **feeds: NDArray[Any]) -> bool:
    """Run both, the model itself as its graph says where this CPU's kernels saturate."""
    options = onnxruntime.SessionOptions()
    if saturates():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    pairs = zip(session.run(None, feeds), run(twin, feeds), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def stored(model: onnx.ModelProto) -> dict[str, str]:
    """Return the type of what each DequantizeLinear of a constant reads, by its output."""
    known = constants(model.graph)
    return {
        node.output[0]: array(known[node.input[0]]).dtype.name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in known
    }


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_exact_as_its_twin(name: str) -> None:
    form, rng = FORMS[name], np.random.default_rng(3)
    case = kf.case_of([kf.Layer(form, kf.any_codes(form, rng), kf.any_weight(form, rng))])
    before = case.model.SerializeToString()
    twin = unsigned_twin(case.model)

    assert case.model.SerializeToString() == before
    assert is_proven(prove_model(twin))
    (found,) = run(twin, case.feeds)
    assert np.array_equal(found, case.expected[name])
    if not saturates():
        assert np.array_equal(found, run(case.model, case.feeds)[0])


def test_the_integers_move_with_their_zero_point_and_the_grid_stays() -> None:
    integers = full(6, 4)
    model = product(integers)
    twin = unsigned_twin(model)

    values = {tensor.name: array(tensor) for tensor in twin.graph.initializer}
    assert np.array_equal(values["weight_uint8"], integers.astype(int) + 128)
    assert values["weight_uint8"].dtype == np.uint8
    assert values["weight_uint8_zero_point"] == np.uint8(128)
    assert "weight" not in values
    assert grid_differences(read_grids(twin), read_grids(model).values()) == []


@pytest.mark.parametrize("zero_point", [None, 0, -128, 127, 5])
@pytest.mark.parametrize("axis", [None, 1])
def test_zero_points_of_every_kind(axis: int | None, zero_point: int | None) -> None:
    b = QuantizedBuilder()
    weight = b.integers("weight", full(6, 4), axis=axis, zero_point=zero_point)
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), weight], "layer"), "y"))
    model = b.build()
    twin = unsigned_twin(model)

    zero = array(constants(twin.graph)["weight_uint8_zero_point"])
    assert zero.shape == (() if axis is None else (4,))
    assert (zero == (zero_point or 0) + 128).all()
    assert same(model, twin, x=numbers(2, 6))


def test_blocks_have_a_zero_point_each() -> None:
    b = QuantizedBuilder()
    b.constant("weight", full(32, 4))
    b.constant("weight_scale", np.full((2, 4), 0.5, np.float32))
    names = ["weight", "weight_scale"]
    weight = b.add("DequantizeLinear", names, "values", axis=0, block_size=16)
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32]))
    b.result(b.add("MatMul", ["x", weight], "y"))
    model = b.build()
    twin = unsigned_twin(model)

    zero = array(constants(twin.graph)["weight_uint8_zero_point"])
    assert (zero.shape, set(zero.flat)) == ((2, 4), {128})
    assert same(model, twin, x=numbers(2, 32))


def shared() -> onnx.ModelProto:
    """Two weights with one zero point and one scale, the first of which has three readers; one more
    DequantizeLinear reads it under another name."""
    b = QuantizedBuilder()
    x = b.data("x", 2, 6)
    zero, scale = b.constant("zero", np.int8(0)), b.constant("scale", np.float32(0.5))
    weights = {}
    for name, tensor in (("first", "a"), ("second", "b"), ("again", "a")):
        if tensor not in {item.name for item in b.initializers}:
            b.constant(tensor, full(6, 6, seed=len(weights)))
        step = b.constant("again_scale", np.float32(0.25)) if name == "again" else scale
        weights[name] = b.add("DequantizeLinear", [tensor, step, zero], f"{name}.values")
    for number, weight in enumerate(["first", "first", "second", "again"]):
        layer = b.add("MatMul", [x, weights[weight]], f"layer{number}")
        b.result(b.quantized(layer, f"y{number}"))
    rows = b.constant("rows", np.int64([1, 3]))
    b.result(b.add("Gather", [weights["first"], rows], "rows_of_it"))
    return b.build()


def test_shared_weights_and_zero_points() -> None:
    model = shared()
    twin = unsigned_twin(model)

    assert {*stored(twin).values()} == {"uint8"}
    # Two weights and their zero points, the scales, data and results.
    names = [tensor.name for tensor in twin.graph.initializer]
    assert len(names) == len({*names}) == len(model.graph.initializer) + 1
    assert is_proven(prove_model(twin))
    assert same(model, twin, x=numbers(2, 6))


def test_only_the_named_tensors() -> None:
    model = shared()
    twin = unsigned_twin(model, {"again", "no_such_tensor"})

    assert stored(twin) == {
        "first.values": "int8",
        "second.values": "int8",
        "again.values": "uint8",
    }
    assert {tensor.name for tensor in model.graph.initializer} < {
        tensor.name for tensor in twin.graph.initializer
    }
    assert same(model, twin, x=numbers(2, 6))
    assert unsigned_twin(model, ()) == model


def test_what_is_no_weight_of_a_product_stays() -> None:
    b = QuantizedBuilder()
    table = b.integers("table", full(6, 4))
    rows = b.add("Gather", [table, b.constant("rows", np.int64([1, 3]))], "rows_of_it")
    first = b.integers("first", full(3, 2))
    b.result(b.add("MatMul", [first, b.quantized(rows, "rows_q")], "layer"))
    model = b.build()

    assert unsigned_twin(model) == model
    # It is a weight, if the first operand.
    assert stored(unsigned_twin(model, ["first"]))["first.values"] == "uint8"


def test_a_weight_that_is_quantized_in_the_graph() -> None:
    b = QuantizedBuilder()
    b.constant("float", within_bound(6, 4).astype(np.float32))
    grid = [b.constant("s", np.float32(0.5)), b.constant("z", np.int8(0))]
    codes = b.add("QuantizeLinear", ["float", *grid], "codes")
    weight = b.add("DequantizeLinear", [codes, *grid], "values")
    b.result(b.quantized(b.add("MatMul", [b.data("x", 2, 6), weight], "layer"), "y"))
    model = b.build()
    twin = unsigned_twin(model)

    assert stored(twin) == {"values": "uint8"}
    assert "codes" not in [node.output[0] for node in twin.graph.node]
    assert "float" not in [tensor.name for tensor in twin.graph.initializer]
    assert same(model, twin, x=numbers(2, 6))


def test_weights_of_branches_and_functions() -> None:
    def branch(name: str) -> onnx.GraphProto:
        b = QuantizedBuilder()
        x, weight = b.quantized("x", f"{name}.x"), b.integers("weight", full(6, 4))
        b.result(b.quantized(b.add("MatMul", [x, weight], f"{name}.layer"), name))
        return b.build().graph

    linear = helper.make_function(
        "own",
        "Linear",
        ["x", "codes", "scale"],
        ["y"],
        [
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["values"]),
            helper.make_node("MatMul", ["x", "values"], ["y"]),
        ],
        [helper.make_opsetid("", 21)],
    )
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]))
    b.inputs.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    b.add("If", ["yes"], "chosen", then_branch=branch("yes_"), else_branch=branch("no_"))
    constants_ = [b.constant("w", full(4, 4)), b.constant("w_scale", np.float32(1))]
    inputs = [b.quantized("chosen", "q"), *constants_]
    b.nodes.append(helper.make_node("Linear", inputs, ["z"], domain="own"))
    b.result(b.quantized("z", "y"))
    model = b.build([linear])
    twin = unsigned_twin(model)

    assert not is_proven(prove_model(model))
    assert is_proven(prove_model(twin))
    for yes in (True, False):
        assert same(model, twin, x=numbers(2, 6), yes=np.array(yes))


def test_names_that_are_taken_and_constants_that_are_inputs() -> None:
    model = product(full(6, 4))
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.INT8, [6, 4]))
    model.graph.initializer.append(helper.make_tensor("weight_uint8", TensorProto.FLOAT, [], [1]))
    twin = unsigned_twin(model)

    assert stored(twin)["weight.values"] == "uint8"
    assert [value.name for value in twin.graph.input] == ["x"]
    assert array(constants(twin.graph)["weight_uint8"]) == 1
    assert is_proven(prove_model(twin))


# --- operators on integers ----------------------------------------------------------------------


def integer_operator(
    op: str, data: type[Any], *, zero_point: bool = True, domain: str = ""
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """Return one with a weight of the full range, and data for it."""
    b = QuantizedBuilder()
    convolves = op.endswith(("Conv", "ConvInteger"))
    shape = (2, 4, 5, 5) if convolves else (3, 6)
    weight = b.constant("weight", full(3, 4, 3, 3) if convolves else full(6, 4))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(data))
    b.inputs.append(helper.make_tensor_value_info("x", kind, shape))
    scale, step = b.constant("one", np.float32(1)), b.constant("step", np.float32(512))
    zero, middle = b.constant("x_zero", data(100)), b.constant("w_zero", np.int8(3))
    of_weight = middle if zero_point else ""
    inputs = {
        "ConvInteger": ["x", weight, zero, of_weight],
        "MatMulInteger": ["x", weight, zero, of_weight],
        "MatMulIntegerToFloat": ["x", weight, scale, scale, zero, of_weight],
        "QGemm": ["x", scale, zero, weight, scale, middle],
        "QLinearConv": ["x", scale, zero, weight, scale, middle, step, zero],
        "QLinearMatMul": ["x", scale, zero, weight, scale, middle, step, zero],
    }[op]
    b.nodes.append(helper.make_node(op, inputs, ["y"], domain=domain))
    sums = TensorProto.INT32 if op.endswith("Integer") else TensorProto.FLOAT
    b.result("y", kind if op.startswith("QLinear") else sums)
    low, high = np.iinfo(data).min, np.iinfo(data).max + 1
    codes = np.random.default_rng(2).integers(low, high, shape).astype(data)
    return b.build(), {"x": codes}


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("ConvInteger", {}),
        ("ConvInteger", {"zero_point": False}),
        ("MatMulInteger", {}),
        ("MatMulInteger", {"zero_point": False}),
        ("MatMulIntegerToFloat", {"domain": "com.microsoft"}),
        ("MatMulIntegerToFloat", {"domain": "com.microsoft", "zero_point": False}),
        ("QGemm", {"domain": "com.microsoft"}),
        ("QLinearConv", {}),
        ("QLinearMatMul", {}),
    ],
)
def test_operators_on_integers(op: str, options: dict[str, Any]) -> None:
    model, feeds = integer_operator(op, np.uint8, **options)
    twin = unsigned_twin(model)

    proof = prove_model(twin)
    assert (proof.weights, proof.bounded) == (1, 1)
    assert "weight" not in [tensor.name for tensor in twin.graph.initializer]
    if not saturates():
        assert np.array_equal(run(model, feeds)[0], run(twin, feeds)[0])


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger", "QLinearConv"])
def test_those_with_signed_data_stay(op: str) -> None:
    model, _ = integer_operator(op, np.int8)
    assert unsigned_twin(model) == model


def test_a_dynamically_quantized_product() -> None:
    b = QuantizedBuilder()
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 6]))
    constants_ = [
        b.constant("weight", full(6, 4)),
        b.constant("scale", np.full(4, 0.5, np.float32)),
    ]
    b.result(b.contrib("DynamicQuantizeMatMul", ["x", *constants_], "y"))
    model = b.build()
    twin = unsigned_twin(model)

    assert array(constants(twin.graph)["weight_uint8_zero_point"]).tolist() == [128] * 4
    assert is_proven(prove_model(twin))
    if not saturates():
        feeds = {"x": numbers(3, 6)}
        assert np.array_equal(run(model, feeds)[0], run(twin, feeds)[0])
