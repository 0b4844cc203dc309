"""Weights that suit every CPU: whatever a step does to them, the published file is proven."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.checkpoints.reading import Facts
from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.graphs.walk import array, constants
from lighten_service.worker.integers.proof import is_proven, prove
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import ENGINES, Bench, InMemory, open_engine, open_graph

INT4, INT8 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8
CALIBRATE = {"calibrate": pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)}
Step = Mapping[str, object]

PLANS: dict[str, list[Step]] = {
    "min_max": [CALIBRATE],
    "sqnr": [{"calibrate": pb.Calibrate(scheme=pb.RANGE_SCHEME_SQNR)}],
    "percentile": [{"calibrate": pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE, percentile=95.0)}],
    "equalized": [
        {"cross_layer_equalization": pb.CrossLayerEqualization()},
        {"activation_equalization": pb.ActivationEqualization(max_samples=8)},
        CALIBRATE,
    ],
    "sequential_mse": [CALIBRATE, {"sequential_mse": pb.SequentialMse(max_samples=8)}],
    "ada_round": [CALIBRATE, {"ada_round": pb.AdaRound(iterations=50, max_samples=8)}],
    "corrected": [
        CALIBRATE,
        {"bias_correction": pb.BiasCorrection(max_samples=8)},
        {"reestimate_batch_norms": pb.ReestimateBatchNorms(max_samples=8)},
    ],
    "widened": [
        CALIBRATE,
        {"mixed_precision": pb.MixedPrecision(max_bops_ratio=1.5, max_samples=8)},
    ],
}


def config(**fields: object) -> pb.QuantizationConfig:
    fields = {
        "weight_granularity": pb.GRANULARITY_PER_CHANNEL,
        "fuse_activations": True,
        "weight_range": pb.WEIGHT_RANGE_EVERY_CPU,
    } | fields
    return pb.QuantizationConfig(**fields)  # type: ignore[arg-type]


def bench_of(engine: str, scratch: Path, quantization: pb.QuantizationConfig) -> Bench:
    scratch.mkdir(exist_ok=True)
    model = open_engine(engine, DepthwiseNet(), scratch)
    bench = Bench(
        model, InMemory(pictures(2)), InMemory(pictures(1, seed=1)), scratch, quantization
    )
    bench.run(fold_batch_norms=pb.FoldBatchNorms())
    return bench


def published(bench: Bench) -> Path:
    path = bench.scratch / "model.qdq.onnx"
    bench.model.export_qdq(path)
    return path


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Return the stored 8-bit weights, by the name of what quantizes them."""
    graph = onnx.load(path).graph
    known = constants(graph)
    return {
        node.input[1].removesuffix("_scale"): array(known[node.input[0]])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in known
        and known[node.input[0]].data_type in (TensorProto.INT8, TensorProto.UINT8)
        and len(known[node.input[0]].dims) > 1
    }


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What both engines share is tried on the quicker one.
SHARED = ("percentile", "equalized", "corrected", "widened")
CASES = [
    pytest.param(engine, name, marks=[pytest.mark.slow] * (engine == "torch" and name in SHARED))
    for engine in ENGINES
    for name in PLANS
]


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_the_published_file_is_proven_after_each_step(
    engine: str, name: str, tmp_path: Path
) -> None:
    bench = bench_of(engine, tmp_path, config())
    for step in PLANS[name]:
        bench.run(**step)
    path = published(bench)
    proof = prove(path)
    assert is_proven(proof), proof
    assert proof.weights >= 6  # mixed precision widens two
    # Depthwise layers keep their full range but for the lowest integer.
    assert proof.bounded > 0
    assert all(values.min() >= -127 for values in weights_of(path).values())


def test_layers_widened_from_four_bits_are_proven_too(engine: str, tmp_path: Path) -> None:
    bench = bench_of(engine, tmp_path, config(weights=INT4))
    bench.run(**CALIBRATE)
    # Out of reach: every layer is widened.
    bench.run(mixed_precision=pb.MixedPrecision(min_sqnr_db=99, max_samples=8, weights=INT8))
    assert "TARGET_MISSED" in bench.reasons()
    proof = prove(published(bench))
    assert is_proven(proof), proof
    assert proof.bounded > 4
    # By their scales: none of the float weights had to move.
    quantized = bench.model.quantized_model()
    for layer in quantized.layers():
        grid = quantized.weight_grid(layer)
        assert grid is not None
        nearest = replace(grid, orders=()).round(quantized.weight(layer))
        torch.testing.assert_close(grid.round(quantized.weight(layer)), nearest, rtol=0, atol=0)


def test_the_full_range_is_not_proven(engine: str, tmp_path: Path) -> None:
    bench = bench_of(engine, tmp_path, config(weight_range=pb.WEIGHT_RANGE_FULL))
    bench.run(**CALIBRATE)
    proof = prove(published(bench))
    assert not is_proven(proof)
    assert proof.x86 == pb.INTEGER_VERDICT_SATURATES
    assert proof.details[0].largest_pair > 128


def test_specs_that_older_servers_resolved_keep_the_full_range(engine: str, tmp_path: Path) -> None:
    files = []
    for range_ in (pb.WEIGHT_RANGE_UNSPECIFIED, pb.WEIGHT_RANGE_FULL):
        bench = bench_of(engine, tmp_path / str(range_), config(weight_range=range_))
        bench.run(**CALIBRATE)
        files.append(published(bench).read_bytes())
    assert files[0] == files[1]


def test_float_model_encodings_and_file_hold_the_same_integers(engine: str, tmp_path: Path) -> None:
    """The mended values of sequential MSE too: whoever quantizes the float model by the encodings
    finds what the QDQ file stores."""
    bench = bench_of(engine, tmp_path, config())
    for step in PLANS["sequential_mse"]:
        bench.run(**step)
    path = published(bench)
    encodings = {entry.tensor: entry for entry in bench.model.encodings()}
    assert grid_differences(read_grids(onnx.load(path)), encodings.values()) == []
    floats = {tensor.name: tensor for tensor in bench.model.graph().graph.initializer}
    for name, stored in weights_of(path).items():
        scale = np.float32(encodings[name].scales)
        weight = array(floats[name])
        axis = next(i for i, size in enumerate(weight.shape) if size == len(scale))
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        integers = np.clip(np.rint(weight / scale.reshape(shape)), -128, 127)
        np.testing.assert_array_equal(integers, stored)


def test_a_model_that_is_saved_and_restored_gives_the_same_proven_file(
    engine: str, tmp_path: Path
) -> None:
    bench = bench_of(engine, tmp_path / "first", config())
    for step in PLANS["sequential_mse"]:
        bench.run(**step)
    state = tmp_path / "state"
    state.mkdir()
    facts: Facts = json.loads(json.dumps(bench.model.save_state(state)))
    (tmp_path / "second").mkdir()
    other = open_engine(engine, DepthwiseNet(), tmp_path / "second")
    other.load_state(state, facts)
    again = tmp_path / "again.onnx"
    other.export_qdq(again)
    assert again.read_bytes() == published(bench).read_bytes()
    assert is_proven(prove(again))


def test_layers_stored_as_uint8_keep_the_full_range_and_their_encodings(
    engine: str, tmp_path: Path
) -> None:
    head = "head" if engine == "torch" else "/head/Gemm"
    chosen = [pb.LayerOverride(select=pb.LayerSelector(layers=[head]), uint8_weights=True)]
    files, encodings = {}, {}
    for name, quantization in {
        "unsigned": config(overrides=chosen),
        "full": config(weight_range=pb.WEIGHT_RANGE_FULL),
    }.items():
        bench = bench_of(engine, tmp_path / name, quantization)
        bench.run(**CALIBRATE)
        files[name] = published(bench)
        encodings[name] = {entry.tensor: entry for entry in bench.model.encodings()}
        if name == "unsigned":
            differences = grid_differences(
                read_grids(onnx.load(files[name])), bench.model.encodings()
            )
    assert differences == []
    unsigned, full = weights_of(files["unsigned"]), weights_of(files["full"])
    stored = {name for name, values in unsigned.items() if values.dtype == np.uint8}
    assert stored == {"head.weight"}
    (name,) = stored
    np.testing.assert_array_equal(unsigned[name].astype(int) - 128, full[name])
    assert encodings["unsigned"][name] == encodings["full"][name]
    assert encodings["unsigned"][name].signed
    proof = prove(files["unsigned"])
    assert is_proven(proof), proof


def test_a_selector_of_uint8_weights_must_find_something(engine: str, tmp_path: Path) -> None:
    chosen = [pb.LayerOverride(select=pb.LayerSelector(layers=["nothing"]), uint8_weights=True)]
    bench = bench_of(engine, tmp_path, config(overrides=chosen))
    with pytest.raises(InvalidArgument) as caught:
        bench.run(**CALIBRATE)
    assert caught.value.reason == "SELECTOR_MATCHES_NOTHING"


def forms() -> onnx.ModelProto:
    """Matrix products in forms that algorithms pass over: a shared weight, one whose bias two
    layers share, one read transposed, a stack of matrices, a bias that is computed."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], f"{op}_{output}", **attributes)

    nodes = [
        node("Flatten", ["input"], "flat"),
        node("MatMul", ["flat", "first"], "a"),
        node("Relu", ["a"], "b"),
        node("MatMul", ["b", "tied"], "c"),
        node("Relu", ["c"], "d"),
        node("MatMul", ["d", "tied"], "e"),
        node("Gemm", ["e", "wide", "shared"], "f", transB=1),
        node("Gemm", ["f", "deep", "shared"], "g", transB=1),
        node("Add", ["shared", "shared"], "twice"),
        node("Gemm", ["g", "last", "twice"], "h"),
        node("Transpose", ["h"], "i", perm=[1, 0]),
        node("Gemm", ["i", "across"], "j", transA=1),
        node("Unsqueeze", ["j", "axis"], "k"),
        node("MatMul", ["k", "stack"], "output"),
    ]
    tensors = [
        weight("first", 768, 9),
        weight("tied", 9, 9),
        weight("wide", 7, 9),
        weight("shared", 7),
        weight("deep", 7, 7),
        weight("last", 7, 7),
        weight("across", 7, 5),
        weight("stack", 1, 5, 3),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "forms",
        [value("input", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("output", TensorProto.FLOAT, ["batch", 1, 3])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_every_form_of_matrix_product_is_proven(tmp_path: Path) -> None:
    model = open_graph(forms(), tmp_path)
    data = InMemory(pictures(2)), InMemory(pictures(1, seed=1))
    bench = Bench(model, *data, tmp_path, config())
    bench.run(**CALIBRATE)
    path = published(bench)
    proof = prove(path)
    assert is_proven(proof), proof
    assert proof.weights == len(weights_of(path)) == 7
