"""Graphs in the form that AIMET reads well: the function stays, bit for bit."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from lighten_service.worker.engines.onnx_normalise import normalise
from tests.support import onnx_models as zoo

IMAGE = [zoo.tensor("image", ["N", 3, 8, 8])]


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, zoo.images(2, size=8))


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Normalise a copy and check that the outputs stay and the result is valid."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    result = normalise(copy)
    onnx.checker.check_model(result, full_check=True)
    for before, after in zip(run(model), run(result), strict=True):
        np.testing.assert_array_equal(before, after)
    return result


def test_nodes_get_names_and_convolutions_a_group() -> None:
    b = zoo.Builder(17)
    b.conv(b.conv("image", "a", (3, 4)), "y", (4, 4))
    result = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 4, 8, 8])]))

    assert len({node.name for node in result.graph.node}) == 2
    for node in result.graph.node:
        assert next(a.i for a in node.attribute if a.name == "group") == 1


def test_weights_behind_identities_and_in_constants_become_initializers() -> None:
    b = zoo.Builder(17)
    b.weight("stored", 4, 3, 1, 1)
    b.add("Identity", [b.add("Identity", ["stored"], "once")], "twice")
    b.add("Conv", ["image", "twice"], "c")
    shift = numpy_helper.from_array(np.arange(4, dtype=np.float32).reshape(4, 1, 1))
    b.nodes.append(helper.make_node("Constant", [], ["shift"], value=shift))
    b.add("Mul", ["c", "shift"], "y")
    graph = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 4, 8, 8])])).graph

    assert [node.op_type for node in graph.node] == ["Conv", "Mul"]
    assert graph.node[0].input[1] == "stored"
    assert {tensor.name for tensor in graph.initializer} == {"stored", "shift"}


def test_an_identity_that_is_an_output_stays() -> None:
    b = zoo.Builder(17)
    b.add("Identity", [b.conv("image", "c", (3, 4))], "y")
    b.add("Relu", ["y"], "z")
    outputs = [zoo.tensor(name, ["N", 4, 8, 8]) for name in ("y", "z")]
    graph = normalised(b.model(IMAGE, outputs)).graph

    assert [node.op_type for node in graph.node] == ["Conv", "Identity", "Relu"]


def test_dropout_goes() -> None:
    b = zoo.Builder(17)
    b.add("Relu", [b.add("Dropout", [b.conv("image", "c", (3, 4))], "d")], "y")
    graph = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 4, 8, 8])])).graph

    assert [node.op_type for node in graph.node] == ["Conv", "Relu"]


def test_layers_get_biases_of_their_own_and_keep_a_shared_weight() -> None:
    b = zoo.Builder(17)
    weight, bias = b.weight("w", 3, 3, 1, 1), b.weight("bias", 3)
    b.add("Conv", [b.add("Conv", ["image", weight, bias], "c"), weight, bias], "y")
    graph = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 3, 8, 8])])).graph

    assert [node.input[1] for node in graph.node] == ["w", "w"]
    assert [node.input[2] for node in graph.node] == ["bias", "bias_2"]


def test_a_weight_with_unlike_readers_is_copied() -> None:
    b = zoo.Builder(17)
    b.weight("table", 8, 8)
    b.add("MatMul", ["image", "table"], "product")
    b.add("Add", ["product", "table"], "y")
    graph = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 3, 8, 8])])).graph

    assert graph.node[0].input[1] != graph.node[1].input[1]


def test_weights_stored_as_lists_become_bytes() -> None:
    b = zoo.Builder(17)
    b.conv("image", "y", (3, 4))
    values = numpy_helper.to_array(b.initializers[0])
    b.initializers[0] = helper.make_tensor(
        "y.weight", onnx.TensorProto.FLOAT, values.shape, values.ravel().tolist()
    )
    tensor = normalised(b.model(IMAGE, [zoo.tensor("y", ["N", 4, 8, 8])])).graph.initializer[0]

    assert tensor.raw_data == values.tobytes()
    assert not tensor.float_data


def test_functions_are_written_out() -> None:
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("mine", "Act", ["a"], ["c"], body, opsets)
    call = helper.make_node("Act", ["image"], ["y"], domain="mine")
    graph = helper.make_graph([call], "g", IMAGE, [zoo.tensor("y", ["N", 3, 8, 8])])
    opsets.append(helper.make_opsetid("mine", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])

    result = normalised(model)
    assert [node.op_type for node in result.graph.node] == ["Relu", "Neg"]


def test_old_models_that_list_weights_as_inputs() -> None:
    model = zoo.mobile_net(9)
    model.ir_version = 3
    weights = [zoo.tensor(t.name, list(t.dims)) for t in model.graph.initializer]
    model.graph.input.extend(weights)

    assert [value.name for value in normalise(model).graph.input] == ["image"]
