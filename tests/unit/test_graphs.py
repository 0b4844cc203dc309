"""Saving, counting, reading and cleaning ONNX graphs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lighten_service.worker.graphs import save
from lighten_service.worker.graphs.biases import bias_encodings, quantize_biases
from lighten_service.worker.graphs.clean import clean_qdq
from lighten_service.worker.graphs.coverage import quantizable_tensors, tensors_without_grid
from lighten_service.worker.graphs.operators import operator_counts
from lighten_service.worker.graphs.qdq import grid_differences, read_encodings, read_grids
from lighten_service.worker.graphs.save import load_with_external, save_single_file
from lighten_service.worker.graphs.statistics import graph_statistics
from lighten_service.worker.model import Encoding
from tests.support import onnx_models as zoo


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def grid(tensor: str, bits: int = 8, *, weight: bool = False) -> Encoding:
    return Encoding(tensor, bits, False, False, (0.5,), (-3,), weight)


class TestSave:
    def test_what_varies_is_left_out(self, tmp_path: Path) -> None:
        one, other = zoo.mobile_net(), zoo.mobile_net()
        other.producer_version = "3.1"
        other.doc_string = "made at /home/somebody"
        other.graph.node[0].doc_string = "File train.py, line 3"
        other.graph.node[0].metadata_props.add(key="pkg.torch.stack_trace", value="train.py")
        other.graph.initializer.sort(key=lambda tensor: tensor.name, reverse=True)
        helper.set_model_props(other, {"producer": "aimet-onnx 2.42.0", "pkg.x": "y"})
        save_single_file(one, tmp_path / "one.onnx")
        save_single_file(other, tmp_path / "other.onnx")

        assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()

    def test_properties_of_the_model_stay(self, tmp_path: Path) -> None:
        model = zoo.mobile_net()
        helper.set_model_props(model, {"stride": "32", "names": "cat,dog"})
        save_single_file(model, tmp_path / "m.onnx")

        properties = load_with_external(tmp_path / "m.onnx").metadata_props
        assert [(p.key, p.value) for p in properties] == [("names", "cat,dog"), ("stride", "32")]

    def test_large_models_get_one_data_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(save, "_INLINE_LIMIT", 0)
        model = zoo.attention()
        feed = zoo.tokens(2)
        expected = run(model, feed)
        save_single_file(model, tmp_path / "m.onnx")

        assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
        assert (tmp_path / "m.onnx.data").stat().st_size >= 50 * 16 * 4
        loaded = load_with_external(tmp_path / "m.onnx")
        for want, got in zip(expected, run(loaded, feed), strict=True):
            np.testing.assert_array_equal(want, got)
        for want, got in zip(expected, run(model, feed), strict=True):
            np.testing.assert_array_equal(want, got)


class TestStatistics:
    def test_counts_of_a_convolutional_net(self) -> None:
        found = graph_statistics(zoo.mobile_net())
        stem, depthwise, point, head = 8 * 27, 8 * 9, 16 * 8, 5 * 16

        # Batch norm: scale and shift are parameters, running statistics are not.
        assert found.parameters == stem + 16 + depthwise + point + 16 + head + 5
        assert found.macs == 256 * (stem + depthwise + point) + head
        assert found.bops == found.macs * 32 * 32
        assert found.weight_bytes == 4 * found.parameters

    def test_a_fixed_batch_counts_one_sample(self) -> None:
        assert graph_statistics(zoo.mobile_net(batch=4)) == graph_statistics(zoo.mobile_net())

    def test_matrix_products_of_two_activations_count(self) -> None:
        # Three projections, scores, mix, head: 8 tokens of width 16.
        expected = 3 * 8 * 16 * 16 + 8 * 8 * 16 + 8 * 8 * 16 + 16 * 3
        assert graph_statistics(zoo.attention()).macs == expected

    def test_transposed_convolution(self) -> None:
        b = zoo.Builder(17)
        weight = b.weight("w", 4, 6, 3, 3)
        b.add("ConvTranspose", ["x", weight], "y", strides=[2, 2])
        model = b.model([zoo.tensor("x", ["N", 4, 5, 5])], [zoo.tensor("y", ["N", 6, 11, 11])])
        assert graph_statistics(model).macs == 4 * 25 * 6 * 9

    def test_widths_reach_across_operators_that_move_data(self) -> None:
        # `head` reads `flat`, whose grid is that of `pool`.
        encodings = [grid("pool", 16), grid("head.weight", 4, weight=True)]
        found = graph_statistics(zoo.mobile_net(), encodings)
        plain = graph_statistics(zoo.mobile_net())

        assert plain.bops - found.bops == 80 * (32 * 32 - 16 * 4)
        assert plain.weight_bytes - found.weight_bytes == 80 * 4 - 80 // 2

    def test_integer_weights_count_at_their_width(self) -> None:
        assert graph_statistics(qdq_net()).parameters == 4 * 3 + 4
        assert graph_statistics(qdq_net()).weight_bytes == 4 * 3 + 4 * 4


def qdq_net(*, high: float = 6.0) -> onnx.ModelProto:
    """x -> Q/DQ -> Gemm (int8 weight, int32 bias) -> Clip -> Q/DQ -> y, as AIMET exports it."""
    b = zoo.Builder(17)
    rng = np.random.default_rng(0)
    b.constant("x_scale", np.float32(0.05))
    b.constant("x_zero_point", np.uint8(128))
    b.constant("w_q", rng.integers(-100, 100, (3, 4)).astype(np.int8))
    b.constant("w_scale", np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    b.constant("w_zero_point", np.zeros(4, np.int8))
    b.constant("b_q", np.array([10, -20, 30, 0], np.int32))
    b.constant("b_scale", np.float32(0.05) * np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    b.constant("b_zero_point", np.zeros(4, np.int32))
    b.constant("hi_q", np.uint8(255))
    b.constant("hi_scale", np.float32(high / 255))
    b.constant("hi_zero_point", np.uint8(0))
    b.constant("lo", np.float32(0))
    b.constant("y_scale", np.float32(6 / 255))
    b.constant("y_zero_point", np.uint8(0))

    def pair(name: str, source: str, target: str) -> None:
        grid = [f"{name}_scale", f"{name}_zero_point"]
        b.add("QuantizeLinear", [source, *grid], f"{name}_q")
        b.add("DequantizeLinear", [f"{name}_q", *grid], target)

    pair("x", "x", "x_updated")
    for name in ("w", "b", "hi"):
        inputs = [f"{name}_q", f"{name}_scale", f"{name}_zero_point"]
        b.add("DequantizeLinear", inputs, f"{name}_qdq", **({} if name == "hi" else {"axis": -1}))
    b.add("Gemm", ["x_updated", "w_qdq", "b_qdq"], "gemm")
    b.add("Clip", ["gemm", "lo", "hi_qdq"], "y_updated")
    pair("y", "y_updated", "y")
    return b.model([zoo.tensor("x", ["N", 3])], [zoo.tensor("y", ["N", 4])])


class TestGrids:
    def test_every_grid_of_a_graph(self) -> None:
        found = read_grids(qdq_net())

        assert set(found) == {"x", "w", "b", "hi", "y"}
        assert found["x"] == Encoding("x", 8, False, True, (pytest.approx(0.05),), (-128,), False)
        assert (found["w"].bits, found["w"].signed, len(found["w"].scales)) == (8, True, 4)
        assert (found["b"].bits, found["b"].is_weight, found["b"].offsets) == (32, True, (0,) * 4)
        assert not found["y"].symmetric

    @pytest.mark.parametrize(
        ("kind", "bits", "signed"),
        [
            (TensorProto.INT4, 4, True),
            (TensorProto.UINT4, 4, False),
            (TensorProto.INT16, 16, True),
            (TensorProto.UINT16, 16, False),
        ],
    )
    def test_narrow_and_wide_types(self, kind: int, bits: int, signed: bool) -> None:
        b = zoo.Builder(21)
        b.constant("x_scale", np.float32(0.1))
        b.initializers.append(helper.make_tensor("x_zero_point", kind, [], [3]))
        b.add("QuantizeLinear", ["x", "x_scale", "x_zero_point"], "x_q")
        b.add("DequantizeLinear", ["x_q", "x_scale", "x_zero_point"], "y")
        model = b.model([zoo.tensor("x", ["N", 2])], [zoo.tensor("y", ["N", 2])])
        found = read_grids(model)["x"]

        assert (found.bits, found.signed, found.offsets) == (bits, signed, (-3,))

    def test_the_encodings_file(self) -> None:
        document = {
            "version": "2.0.0",
            "encodings": [
                {"name": "w", "output_dtype": "int8", "y_scale": [0.1, 0.2], "axis": 0},
                {"name": "x", "output_dtype": "uint16", "y_scale": 0.5, "y_zero_point": 7},
            ],
        }
        weight, activation = read_encodings(document, {"w"})

        assert weight == Encoding("w", 8, True, True, (0.1, 0.2), (0, 0), True)
        assert activation == Encoding("x", 16, False, False, (0.5,), (-7,), False)

    def test_differences_name_the_tensor(self) -> None:
        grids = {"a": grid("a"), "b": grid("b"), "c": grid("c"), "d": grid("d")}
        moved = Encoding("c", 8, False, False, (0.5001,), (-3,), False)
        lines = grid_differences(grids, [grid("a"), grid("b", 16), moved, grid("unused")])

        assert [line.partition(":")[0] for line in lines] == ["b", "c", "d"]

    def test_single_precision_is_no_difference(self) -> None:
        exact = Encoding("a", 8, False, False, (0.1,), (0,), False)
        stored = Encoding("a", 8, False, False, (float(np.float32(0.1)),), (0,), False)
        assert grid_differences({"a": stored}, [exact]) == []

    @pytest.mark.parametrize(
        ("signed", "offset", "equal"),
        [(False, -128, True), (False, -127, False), (True, 0, True), (True, -1, False)],
    )
    def test_unsigned_weights_with_their_zero_point_in_the_middle_are_signed_ones(
        self, signed: bool, offset: int, equal: bool
    ) -> None:
        stored = Encoding("w", 8, signed, False, (0.5, 0.25), (offset, offset), True)
        signed_grid = Encoding("w", 8, True, True, (0.5, 0.25), (0, 0), True)
        assert (grid_differences({"w": stored}, [signed_grid]) == []) is equal
        activation = Encoding("w", 8, False, False, (0.5,), (-128,), False)
        assert grid_differences({"w": activation}, [replace(activation, signed=True, offsets=(0,))])


class TestCoverage:
    def test_operands_of_heavy_operators(self) -> None:
        assert quantizable_tensors(zoo.mobile_net()) == (
            "image", "stem.weight", "act", "depthwise.weight", "depthwise_act", "point.weight",
            "pool", "head.weight",
        )  # fmt: skip

    def test_missing_grids_are_named(self) -> None:
        names = {"image", "stem.weight", "act", "depthwise.weight", "point.weight", "head.weight"}
        model = zoo.mobile_net()

        assert tensors_without_grid(model, names) == ("depthwise_act", "pool")
        assert tensors_without_grid(model, names | {"depthwise_act", "flat"}) == ()


class TestClean:
    def test_outputs_stay_equal_and_the_clip_goes(self) -> None:
        model = qdq_net()
        feed = {"x": np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32) * 5}
        before = run(model, feed)[0]
        clean_qdq(model)

        operators = [node.op_type for node in model.graph.node]
        assert "Clip" not in operators
        assert operators.count("DequantizeLinear") == 4
        assert {t.name for t in model.graph.initializer}.isdisjoint({"hi_q", "lo", "hi_qdq"})
        np.testing.assert_array_equal(run(model, feed)[0], before)

    def test_a_clip_inside_the_range_stays_with_plain_bounds(self) -> None:
        model = qdq_net(high=3.0)
        feed = {"x": np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32) * 5}
        before = run(model, feed)[0]
        clean_qdq(model)
        clip = next(node for node in model.graph.node if node.op_type == "Clip")
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}

        assert stored[clip.input[2]] == pytest.approx(3.0)
        np.testing.assert_array_equal(run(model, feed)[0], before)

    def test_repeated_grids_are_merged(self) -> None:
        b = zoo.Builder(17)
        b.constant("s", np.float32(0.1))
        b.constant("z", np.uint8(10))
        source = "x"
        for step in range(3):
            b.add("QuantizeLinear", [source, "s", "z"], f"q{step}")
            source = b.add("DequantizeLinear", [f"q{step}", "s", "z"], f"dq{step}")
        b.add("Relu", [source], "y")
        model = b.model([zoo.tensor("x", ["N", 4])], [zoo.tensor("y", ["N", 4])])
        feed = {"x": np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32) * 9}
        before = run(model, feed)[0]
        clean_qdq(model)

        operators = [node.op_type for node in model.graph.node]
        assert operators == ["QuantizeLinear", "DequantizeLinear", "Relu"]
        np.testing.assert_array_equal(run(model, feed)[0], before)

    @pytest.mark.parametrize("op", ["Relu", "Clip"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int8])
    @pytest.mark.parametrize(("scale", "shift"), [(6 / 255, 0), (5.9 / 255, 0), (6 / 255, 1)])
    def test_activations_go_exactly_where_no_output_changes(
        self, op: str, dtype: type[np.integer], scale: float, shift: int
    ) -> None:
        b = zoo.Builder(17)
        b.constant("s", np.float32(scale))
        b.constant("z", np.asarray(np.iinfo(dtype).min + shift, dtype))
        b.relu6("x", "y") if op == "Clip" else b.add("Relu", ["x"], "y")
        b.add("DequantizeLinear", [b.add("QuantizeLinear", ["y", "s", "z"], "q"), "s", "z"], "out")
        model = b.model([zoo.tensor("x", ["N"])], [zoo.tensor("out", ["N"])])
        feed = {"x": np.linspace(-9, 9, 100_001, dtype=np.float32)}
        before = run(model, feed)[0]
        clean_qdq(model)

        # A zero point beside the end of the range lets values below 0 pass.
        assert len(model.graph.node) == (2 if shift == 0 else 3)
        np.testing.assert_array_equal(run(model, feed)[0], before)


class TestBiases:
    def test_input_scale_times_weight_scale(self) -> None:
        found = bias_encodings(zoo.mobile_net().graph, document(point=(0.5, 0.25), head=None))

        # `stem` and `depthwise` have no bias; `head` has no weight on a grid.
        assert [entry["name"] for entry in found] == ["point.bias"]
        np.testing.assert_allclose(found[0]["y_scale"], np.full(16, 0.125), rtol=1e-6)
        assert (found[0]["output_dtype"], found[0]["axis"]) == ("int32", 0)

    def test_grids_are_found_past_what_only_moves_data(self) -> None:
        found = bias_encodings(zoo.mobile_net().graph, document(head=(0.5, 0.1)))
        assert [entry["name"] for entry in found] == ["head.bias"]

    def test_what_32_bits_cannot_hold_stays_in_float(self) -> None:
        assert bias_encodings(zoo.mobile_net().graph, document(point=(1e-5, 1e-5))) == []

    def test_outputs_stay_within_half_a_step_of_the_bias(self) -> None:
        b = zoo.Builder(17)
        data, weight = np.float32(0.05), np.array([0.1, 0.2, 0.3, 0.4], np.float32)
        b.constant("x_scale", data)
        b.constant("x_zero_point", np.uint8(128))
        b.constant("w_q", np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int8))
        b.constant("w_scale", weight)
        b.weight("bias", 4)
        grid = ["x_scale", "x_zero_point"]
        b.add("QuantizeLinear", ["x", *grid], "x_q")
        b.add("DequantizeLinear", ["x_q", *grid], "x_qdq")
        b.add("DequantizeLinear", ["w_q", "w_scale"], "w_qdq", axis=1)
        b.add("Gemm", ["x_qdq", "w_qdq", "bias"], "y")
        model = b.model([zoo.tensor("x", ["N", 3])], [zoo.tensor("y", ["N", 4])])
        feed = {"x": np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)}
        before = run(model, feed)[0]
        entry = {"name": "bias", "output_dtype": "int32", "axis": 0, "y_scale": data * weight}

        assert quantize_biases(model, [entry, {"name": "x", "output_dtype": "uint8"}]) == 1
        assert read_grids(model)["bias"].bits == 32
        assert np.abs(run(model, feed)[0] - before).max() <= (data * weight).max() * 0.501


def document(**layers: tuple[float, float] | None) -> dict[str, object]:
    """Encodings of `mobile_net`: scales of the input and of the weight of each layer."""
    inputs = {"point": "depthwise_act", "head": "pool"}
    entries = []
    for name, scales in layers.items():
        if scales is not None:
            data, weight = scales
            size = {"point": 16, "head": 5}[name]
            entries += [
                {"name": inputs[name], "output_dtype": "uint8", "y_scale": data},
                {"name": f"{name}.weight", "output_dtype": "int8", "y_scale": [weight] * size},
            ]
    return {"encodings": entries}


class TestOperators:
    def test_of_a_float_graph(self, tmp_path: Path) -> None:
        save_single_file(zoo.mobile_net(), tmp_path / "m.onnx")
        found = operator_counts(tmp_path / "m.onnx")

        assert (found.heavy, found.integer_heavy, found.conversions) == (4, 0, 0)
        assert found.total >= 4
        assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]

    def test_of_a_quantized_graph(self, tmp_path: Path) -> None:
        model = qdq_net()
        clean_qdq(model)
        save_single_file(model, tmp_path / "m.onnx")
        found = operator_counts(tmp_path / "m.onnx")

        assert (found.heavy, found.integer_heavy, found.conversions, found.total) == (1, 1, 2, 3)
