"""Every combination that GetCapabilities lists is simulated, written, and run as simulated."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from lighten import v1 as pb

pytest.importorskip("aimet_torch")

import torch
from torch import nn

from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.support import type_support
from lighten_service.worker.engines import open_model
from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.model import WorkingModel
from tests.integration.test_torch_engine import run_file, wrap
from tests.support.small_models import batches, sqnr_db

DATA = batches(2, 16)
BLOCK_SIZE = 8
BLOCKWISE = (pb.GRANULARITY_BLOCKWISE, pb.GRANULARITY_LOW_POWER_BLOCKWISE)
INT4, INT8, FLOAT16 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_FLOAT16
# dB to FP32 that weights of a width leave at least.
FLOOR = {INT4: 9.0, INT8: 28.0, pb.DATA_TYPE_INT16: 28.0, pb.DATA_TYPE_FLOAT8_E4M3: 22.0}
COMBINATIONS = [
    (support, granularity) for support in type_support() for granularity in support.granularities
]


def name_of(value: object) -> str | None:
    if isinstance(value, pb.TypeSupport):
        names = [pb.Engine.Name(value.engine).removeprefix("ENGINE_")]
        types = (value.weights, value.activations)
        return "-".join(names + [pb.DataType.Name(t).removeprefix("DATA_TYPE_") for t in types])
    return pb.Granularity.Name(value).removeprefix("GRANULARITY_")


class Net(nn.Module):
    """A convolution of 3x3, one of 1x1, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.point(self.wide(x))))


def open_net(engine: pb.Engine.ValueType, folder: Path) -> WorkingModel:
    model: WorkingModel = wrap(Net().eval(), folder)
    if engine == pb.ENGINE_TORCH:
        return model
    model.export_float(folder / "upload.onnx")
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    return open_model(spec, folder / "upload.onnx", scratch=folder, device="cpu", seed=0)


def calibrate(model: WorkingModel, quantization: pb.QuantizationConfig) -> None:
    model.calibrate(quantization, pb.Calibrate(), lambda: DATA, on_batch=lambda done: None)


def outputs(model: WorkingModel) -> np.ndarray:
    return np.concatenate([model.predict(batch)["output"] for batch in DATA])


def config(
    weights: pb.DataType.ValueType,
    activations: pb.DataType.ValueType,
    granularity: pb.Granularity.ValueType,
) -> pb.QuantizationConfig:
    quantization = pb.QuantizationConfig(
        weights=weights, activations=activations, weight_granularity=granularity
    )
    if granularity in BLOCKWISE:
        quantization.block_size = BLOCK_SIZE
        # The 3x3 convolution keeps one scale a channel.
        first = pb.LayerOverride(select=pb.LayerSelector(layers=["*wide*"]), weights=INT8)
        quantization.overrides.append(first)
    return quantization


@pytest.mark.parametrize(("support", "granularity"), COMBINATIONS, ids=name_of)
def test_what_is_listed_works(
    support: pb.TypeSupport, granularity: pb.Granularity.ValueType, tmp_path: Path
) -> None:
    model = open_net(support.engine, tmp_path)
    expected = outputs(model)
    calibrate(model, config(support.weights, support.activations, granularity))
    simulated = outputs(model)

    floor = min(FLOOR[support.weights], FLOOR.get(support.activations, 100.0))
    assert sqnr_db(expected, simulated) > floor
    model.export_encodings(tmp_path / "encodings", pb.ENCODINGS_VERSION_2_0_0)
    encodings = {encoding.tensor: encoding for encoding in model.encodings()}
    entries = json.loads((tmp_path / "encodings").read_text())["encodings"]
    assert {entry["name"] for entry in entries} == set(encodings)
    assert model.statistics().weight_bytes < 1.1 * bytes_of(support.weights, granularity)
    if granularity in BLOCKWISE:
        assert len(encodings["point.0.weight"].scales) == 32 * 16 // BLOCK_SIZE
    if not support.qdq_onnx:
        return
    model.export_qdq(tmp_path / "q.onnx")
    assert grid_differences(read_grids(onnx.load(tmp_path / "q.onnx")), encodings.values()) == []
    for level in ("off", "on"):
        # Single steps of an 8-bit grid show above 40 dB.
        assert sqnr_db(simulated, run_file(tmp_path / "q.onnx", level, DATA)) > 40


@pytest.mark.parametrize("engine", [pb.ENGINE_TORCH, pb.ENGINE_ONNX])
def test_asymmetric_weights_run_as_simulated(engine: pb.Engine.ValueType, tmp_path: Path) -> None:
    model = open_net(engine, tmp_path)
    calibrate(model, pb.QuantizationConfig(weight_symmetry=pb.SYMMETRY_ASYMMETRIC))
    model.export_qdq(tmp_path / "q.onnx")
    grids = read_grids(onnx.load(tmp_path / "q.onnx"))
    assert grid_differences(grids, model.encodings()) == []
    for level in ("off", "on"):
        assert sqnr_db(outputs(model), run_file(tmp_path / "q.onnx", level, DATA)) > 40


@pytest.mark.parametrize("engine", [pb.ENGINE_TORCH, pb.ENGINE_ONNX])
@pytest.mark.parametrize("granularity", BLOCKWISE)
def test_overrides_may_leave_no_layer_with_blocks(
    engine: pb.Engine.ValueType, granularity: pb.Granularity.ValueType, tmp_path: Path
) -> None:
    quantization = config(INT4, INT8, granularity)
    quantization.overrides[0].select.layers[:] = ["*"]
    model = open_net(engine, tmp_path)
    calibrate(model, quantization)
    assert {len(grid.scales) for grid in model.encodings() if grid.is_weight} == {10, 16, 32}


def bytes_of(weights: pb.DataType.ValueType, granularity: pb.Granularity.ValueType) -> float:
    bits = {INT4: 4, INT8: 8, pb.DATA_TYPE_INT16: 16, pb.DATA_TYPE_FLOAT8_E4M3: 8}[weights]
    wide, rest, biases = 27 * 16, 16 * 32 + 32 * 16 + 16 * 10, 16 + 32 + 16 + 10
    return wide * (8 if granularity in BLOCKWISE else bits) / 8 + rest * bits / 8 + 4 * biases


@pytest.mark.parametrize("engine", [pb.ENGINE_TORCH, pb.ENGINE_ONNX])
@pytest.mark.parametrize("granularity", BLOCKWISE)
def test_layers_without_blocks_are_named(
    engine: pb.Engine.ValueType, granularity: pb.Granularity.ValueType, tmp_path: Path
) -> None:
    quantization = config(INT4, INT8, granularity)
    del quantization.overrides[:]
    quantization.block_size = 32

    with pytest.raises(InvalidArgument) as caught:
        calibrate(open_net(engine, tmp_path), quantization)

    assert caught.value.reason == "BLOCKWISE_NOT_APPLICABLE"
    assert caught.value.field == "plan.quantization.weight_granularity"
    message = caught.value.message
    assert "wide" in message.partition("are no linear layers")[0]
    # 16 input channels, 32 a block; the first linear layer has 32.
    assert "point" in message
    assert "head.2" in message.replace("/", ".")
    assert "head.0" not in message.replace("/", ".")


@pytest.mark.parametrize("engine", [pb.ENGINE_TORCH, pb.ENGINE_ONNX])
def test_half_precision_activations_have_no_grid(
    engine: pb.Engine.ValueType, tmp_path: Path
) -> None:
    model = open_net(engine, tmp_path)
    calibrate(model, config(INT8, FLOAT16, pb.GRANULARITY_PER_CHANNEL))
    model.export_qdq(tmp_path / "q.onnx")

    operators = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert "QuantizeLinear" not in operators
    assert all(encoding.is_weight for encoding in model.encodings())
    assert onnxruntime.InferenceSession(tmp_path / "q.onnx").get_inputs()[0].type == "tensor(float)"
