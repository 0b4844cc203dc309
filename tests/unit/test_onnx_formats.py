"""ONNX uploads: what is accepted, and the clear word for everything else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.formats.onnx_inputs import batch_size, fix_inputs
from lighten_service.worker.formats.onnx_safety import load_onnx_model
from tests.support import onnx_models as zoo

IMAGE = [zoo.tensor("x", ["N", 4])]
RESULT = [zoo.tensor("y", ["N", 4])]


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        load_onnx_model(path)
    error = caught.value
    assert error.field == "model.artifact"
    assert error.kind == pb.ERROR_KIND_USER
    assert str(path.parent) not in error.message
    return error


def proto(nodes: list[onnx.NodeProto], **kwargs: object) -> onnx.ModelProto:
    """An unchecked model: x to y."""
    opsets = kwargs.pop("opsets", [helper.make_opsetid("", 17)])
    functions = kwargs.pop("functions", [])
    graph = helper.make_graph(nodes, "g", IMAGE, RESULT, **kwargs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def relu() -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"])


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 24])
def test_opsets_from_9_to_24_load(opset: int, tmp_path: Path) -> None:
    model = zoo.mobile_net(opset)
    assert load_onnx_model(write(tmp_path / "m.onnx", model)) == model


@pytest.mark.parametrize("opset", [8, 99])
def test_other_opsets_are_refused(opset: int, tmp_path: Path) -> None:
    model = proto([relu()], opsets=[helper.make_opsetid("", opset)])
    error = refused(write(tmp_path / "m.onnx", model))
    assert error.reason == "UNSUPPORTED_OPSET"
    assert "9 to 24" in error.message


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"this is no model", zoo.mobile_net().SerializeToString()[:-700]],
    ids=["empty", "zeros", "text", "truncated"],
)
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert refused(tmp_path / "m.onnx").reason == "INVALID_MODEL"


def test_a_graph_without_operators(tmp_path: Path) -> None:
    assert refused(write(tmp_path / "m.onnx", proto([]))).reason == "INVALID_MODEL"


def test_what_onnx_runtime_refuses(tmp_path: Path) -> None:
    b = zoo.Builder(17)
    b.add("MatMul", ["x", b.weight("w", 4, 4)], "y")
    model = b.model(IMAGE, RESULT)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((7, 4), np.float32), "w"))
    error = refused(write(tmp_path / "m.onnx", model))
    assert error.reason == "INVALID_MODEL"
    assert len(error.message) < 400


def hidden_in_subgraph(node: onnx.NodeProto) -> onnx.ModelProto:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [zoo.tensor("b", ["N", 4])])

    plain = branch("plain", helper.make_node("Relu", ["x"], ["b"]))
    inner = helper.make_node(
        "If", ["c"], ["b"], then_branch=branch("deep", node), else_branch=plain
    )
    outer = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("then", inner), else_branch=plain
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    return proto([outer], initializer=[condition])


def hidden_in_function(node: onnx.NodeProto) -> onnx.ModelProto:
    function = helper.make_function(
        "mine", "Act", ["x"], ["b"], [node], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Act", ["x"], ["y"], domain="mine")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return proto([call], opsets=opsets, functions=[function])


@pytest.mark.parametrize("hide", [hidden_in_subgraph, hidden_in_function])
@pytest.mark.parametrize(
    ("operator", "domain"),
    [("QcQuantizeOp", "aimet.customop.cpu"), ("Anything", "aimet.customop.cuda"),
     ("QcQuantizeOp", "")],
)  # fmt: skip
def test_aimet_operators_are_found_wherever_they_hide(
    hide: Callable[[onnx.NodeProto], onnx.ModelProto], operator: str, domain: str, tmp_path: Path
) -> None:
    node = helper.make_node(operator, ["x"], ["b"], domain=domain, quant_info=1)
    assert refused(write(tmp_path / "m.onnx", hide(node))).reason == "UNSAFE_MODEL"


def test_functions_of_standard_operators_load(tmp_path: Path) -> None:
    model = hidden_in_function(helper.make_node("Relu", ["x"], ["b"]))
    assert len(load_onnx_model(write(tmp_path / "m.onnx", model)).functions) == 1


@pytest.mark.parametrize(
    ("operator", "domain", "named"),
    [
        ("FusedConv", "com.microsoft", "com.microsoft.FusedConv"),
        ("Relo", "", "ai.onnx.Relo"),
        ("Upsample", "", "ai.onnx.Upsample"),
        ("Gelu", "", "ai.onnx.Gelu"),
        ("TreeEnsemble", "ai.onnx.ml", "ai.onnx.ml.TreeEnsemble"),
    ],
)
def test_unknown_operators_are_named(
    operator: str, domain: str, named: str, tmp_path: Path
) -> None:
    model = proto([helper.make_node(operator, ["x"], ["y"], domain=domain)])
    error = refused(write(tmp_path / "m.onnx", model))
    assert error.reason == "UNKNOWN_OPERATORS"
    assert named in error.message


def test_quantized_uploads(tmp_path: Path) -> None:
    b = zoo.Builder(17)
    scale, zero = b.constant("s", np.float32(0.1)), b.constant("z", np.uint8(0))
    b.add("DequantizeLinear", [b.add("QuantizeLinear", ["x", scale, zero], "q"), scale, zero], "y")
    error = refused(write(tmp_path / "m.onnx", b.model(IMAGE, RESULT)))
    assert error.reason == "ALREADY_QUANTIZED"
    assert "float model" in error.message


def test_random_operators(tmp_path: Path) -> None:
    model = proto([helper.make_node("RandomNormalLike", ["x"], ["y"])])
    assert refused(write(tmp_path / "m.onnx", model)).reason == "RANDOM_OPERATORS"


@pytest.mark.parametrize("mode", ["batch norm", "dropout", "training info"])
def test_training_graphs(mode: str, tmp_path: Path) -> None:
    b = zoo.Builder(17)
    if mode == "batch norm":
        b.batch_norm("x", "y", 4)
        b.nodes[0].attribute.append(helper.make_attribute("training_mode", 1))
    elif mode == "dropout":
        ratio, training = b.constant("r", np.float32(0.5)), b.constant("t", np.array(True))
        b.add("Dropout", ["x", ratio, training], "y")
    else:
        b.add("Relu", ["x"], "y")
    model = proto(b.nodes, initializer=b.initializers)
    if mode == "training info":
        model.training_info.add()
    assert refused(write(tmp_path / "m.onnx", model)).reason == "TRAINING_GRAPH"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    b = zoo.Builder(17)
    b.add("Add", ["x", b.constant("mask", np.array([0, value, 0, 0], np.float32))], "y")
    error = refused(write(tmp_path / "m.onnx", b.model(IMAGE, RESULT)))
    assert error.reason == "NON_FINITE_WEIGHTS"
    assert "mask" in error.message


def test_an_infinite_bound_of_clip_is_fine(tmp_path: Path) -> None:
    b = zoo.Builder(17)
    b.add("Clip", ["x", b.constant("lo", np.float32(-np.inf))], "y")
    load_onnx_model(write(tmp_path / "m.onnx", b.model(IMAGE, RESULT)))


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_float_types(kind: int, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [relu()], "g", [zoo.tensor("x", ["N", 4], kind)], [zoo.tensor("y", ["N", 4], kind)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    error = refused(write(tmp_path / "m.onnx", model))
    assert error.reason == "UNSUPPORTED_TYPE"
    assert "float32" in error.message


def test_sequences(tmp_path: Path) -> None:
    split = helper.make_node("SplitToSequence", ["x"], ["s"])
    joined = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    assert refused(write(tmp_path / "m.onnx", proto([split, joined]))).reason == "UNSUPPORTED_TYPE"


class TestExternalData:
    def save(self, folder: Path, location: str = "weights.bin") -> onnx.ModelProto:
        model = zoo.mobile_net()
        zoo.save_with_external_data(model, folder / "m.onnx", location)
        return zoo.mobile_net()

    def relocate(self, folder: Path, location: str) -> Path:
        model = onnx.load(str(folder / "m.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        return write(folder / "m.onnx", model)

    def test_a_folder_loads(self, tmp_path: Path) -> None:
        original = self.save(tmp_path)
        loaded = load_onnx_model(tmp_path)
        for a, b in zip(original.graph.initializer, loaded.graph.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
        assert not any(t.external_data for t in loaded.graph.initializer)

    def test_missing(self, tmp_path: Path) -> None:
        self.save(tmp_path)
        (tmp_path / "weights.bin").unlink()
        error = refused(tmp_path / "m.onnx")
        assert error.reason == "EXTERNAL_DATA_MISSING"
        assert "folder" in error.message

    def test_cut_off(self, tmp_path: Path) -> None:
        self.save(tmp_path)
        with (tmp_path / "weights.bin").open("r+b") as stream:
            stream.truncate(100)
        assert refused(tmp_path / "m.onnx").reason == "INVALID_MODEL"

    @pytest.mark.parametrize(
        "location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "", "..\\w.bin"]
    )
    def test_paths_that_leave_the_folder(self, location: str, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        self.save(folder)
        (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
        assert refused(self.relocate(folder, location)).reason == "UNSAFE_MODEL"

    @pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
    def test_links(self, whole: bool, tmp_path: Path) -> None:
        folder, outside = tmp_path / "model", tmp_path / "outside"
        folder.mkdir()
        outside.mkdir()
        self.save(folder)
        (folder / "weights.bin").rename(outside / "weights.bin")
        if whole:
            (folder / "sub").symlink_to(outside)
            self.relocate(folder, "sub/weights.bin")
        else:
            (folder / "weights.bin").symlink_to(outside / "weights.bin")
        assert refused(folder / "m.onnx").reason == "UNSAFE_MODEL"

    def test_a_limit_on_bytes(self, tmp_path: Path) -> None:
        self.save(tmp_path)
        with pytest.raises(InvalidArgument, match="more than 100 bytes"):
            load_onnx_model(tmp_path, max_bytes=100)

    def test_two_models_in_a_folder(self, tmp_path: Path) -> None:
        self.save(tmp_path)
        write(tmp_path / "other.onnx", zoo.mobile_net())
        with pytest.raises(InvalidArgument, match=r"m\.onnx, other\.onnx"):
            load_onnx_model(tmp_path)


def spec(name: str, *shape: int, dtype: int = pb.ELEMENT_TYPE_FLOAT32) -> pb.InputSpec:
    return pb.InputSpec(name=name, shape=shape, dtype=dtype)


def free_net() -> onnx.ModelProto:
    b = zoo.Builder(17)
    b.conv("image", "y", (3, 4))
    return b.model(
        [zoo.tensor("image", [None, 3, "height", "width"])],
        [zoo.tensor("y", [None, 4, None, None])],
    )


class TestInputs:
    def test_known_from_the_graph(self) -> None:
        assert fix_inputs(zoo.mobile_net(), []) == (spec("image", 3, 16, 16),)
        assert fix_inputs(zoo.attention(), []) == (
            spec("ids", 8, dtype=pb.ELEMENT_TYPE_INT64),
            spec("mask", 8, dtype=pb.ELEMENT_TYPE_INT64),
        )

    def test_open_dimensions_need_a_spec(self) -> None:
        with pytest.raises(InvalidArgument, match=r"dimension 2 \(height\) of input 'image'") as e:
            fix_inputs(free_net(), [])
        assert (e.value.reason, e.value.field) == ("OPEN_DIMENSION", "model.inputs")

    def test_a_spec_closes_them_and_leaves_the_batch_open(self) -> None:
        model = free_net()
        assert fix_inputs(model, [spec("image", 3, 8, 8)]) == (spec("image", 3, 8, 8),)
        sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert sizes == [0, 3, 8, 8]
        assert batch_size(model) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            spec("picture", 3, 16, 16),
            spec("image", 1, 16, 16),
            spec("image", 3, 16),
            spec("image", 3, 16, 0),
            spec("image", 3, 16, 16, dtype=pb.ELEMENT_TYPE_INT64),
        ],
        ids=["name", "size", "rank", "zero", "type"],
    )
    def test_a_spec_that_does_not_fit_lists_the_inputs(self, wrong: pb.InputSpec) -> None:
        with pytest.raises(InvalidArgument, match=r"image float \[3, 16, 16\]") as caught:
            fix_inputs(zoo.mobile_net(), [wrong])
        assert (caught.value.reason, caught.value.field) == ("INPUT_MISMATCH", "model.inputs")

    def test_unlike_batches(self) -> None:
        model = zoo.attention()
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        with pytest.raises(InvalidArgument) as caught:
            fix_inputs(model, [])
        assert caught.value.reason == "UNSUPPORTED_BATCH"

    def test_types_that_datasets_do_not_have(self) -> None:
        model = proto([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)])
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        with pytest.raises(InvalidArgument, match="uint8") as caught:
            fix_inputs(model, [])
        assert caught.value.reason == "UNSUPPORTED_TYPE"
