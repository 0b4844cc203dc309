"""Exported files are as integer as those of ONNX Runtime's own quantizer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from lighten import v1 as pb

pytest.importorskip("aimet_torch")

import torch
from torch import nn

from lighten_service.worker.columns import Column, time_columns, why_not_faster
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.engines import open_model
from lighten_service.worker.engines.onnx_rewrites import rewrite
from lighten_service.worker.evaluation import Reference
from lighten_service.worker.graphs.operators import operator_counts
from lighten_service.worker.model import Batch, ModelStatistics, WorkingModel
from tests.support import onnx_models as zoo
from tests.support.small_models import architecture_spec, batches, save_weights, sqnr_db

SIDE = 64
DATA = batches(2, 2, SIDE)


class Reader(CalibrationDataReader):
    """Gives ONNX Runtime's quantizer the same samples."""

    def __init__(self, data: list[Batch]) -> None:
        self._batches = iter(data)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def quantize(model: WorkingModel, file: Path) -> Path:
    model.fold_batch_norms()
    model.calibrate(
        pb.QuantizationConfig(), pb.Calibrate(), lambda: DATA, on_batch=lambda done: None
    )
    model.export_qdq(file)
    return file


@pytest.mark.parametrize("name", ["mobilenet_v2", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_both_engines_are_as_integer_as_onnxruntimes_own(name: str, tmp_path: Path) -> None:
    weights = save_weights(name, tmp_path / "weights")
    spec = architecture_spec(name, SIDE)
    in_torch = open_model(spec, weights, scratch=tmp_path, device="cpu", seed=0)
    in_torch.fold_batch_norms()
    in_torch.export_float(tmp_path / "float.onnx")
    upload = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    in_onnx = open_model(upload, tmp_path / "float.onnx", scratch=tmp_path, device="cpu", seed=0)
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "own.onnx",
        Reader(DATA),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )

    own = operator_counts(tmp_path / "own.onnx")
    assert own.integer_heavy == own.heavy == {"mobilenet_v2": 53, "resnet18": 21}[name]
    assert own.conversions == 2
    for engine, model in (("torch", in_torch), ("onnx", in_onnx)):
        assert operator_counts(quantize(model, tmp_path / f"{engine}.onnx")) == own
        model.close()


def test_biases_that_exporters_wrote_apart_are_joined(tmp_path: Path) -> None:
    plain, rewritten = _with_loose_biases(), _with_loose_biases()
    rewrite(rewritten.graph)
    feed = zoo.images(4)

    assert [node.op_type for node in rewritten.graph.node] == [
        "Conv",
        "Mul",
        "Conv",
        "Relu",
        "Conv",
    ]
    assert sqnr_db(_run(plain, feed), _run(rewritten, feed)) > 120


def _with_loose_biases() -> onnx.ModelProto:
    """Conv, Reshape of a constant, Add, division, as Paddle's exporter writes them."""
    b = zoo.Builder(17)
    b.constant("shape", np.array([1, 8, 1, 1]))
    b.add("Reshape", [b.weight("loose", 8), "shape"], "bias")
    b.add("Add", [b.conv("image", "first", (3, 8)), "bias"], "sum")
    b.add("Div", ["sum", b.constant("six", np.float32(6))], "divided")
    second = b.add("Add", [b.weight("after", 8, 1, 1), b.conv("divided", "second", (8, 8))], "more")
    b.conv(b.add("Relu", [second], "relu"), "third", (8, 4))
    return b.model([zoo.tensor("image", ["N", 3, 16, 16])], [zoo.tensor("third", ["N", 4, 16, 16])])


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("kept", [2, 9])
def test_additions_that_are_no_bias_stay(kept: int) -> None:
    b = zoo.Builder(17)
    first = b.conv("image", "first", (3, 16))
    # One value a column, and one value for everything.
    shape = {2: (16,), 9: ()}[kept]
    b.add("Add", [first, b.constant("added", np.ones(shape, np.float32))], "y")
    model = b.model([zoo.tensor("image", ["N", 3, 16, 16])], [zoo.tensor("y", ["N", 16, 16, 16])])
    rewrite(model.graph)

    assert [node.op_type for node in model.graph.node] == ["Conv", "Add"]


def test_a_bias_behind_a_flatten_fits_its_accumulator(tmp_path: Path) -> None:
    from tests.integration.test_torch_engine import check_qdq, outputs, wrap
    from tests.integration.test_torch_engine import quantize as calibrate

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(), nn.Linear(8, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[6].weight[0] *= 1e-9
        net[6].bias[0] = 3.0
    model = wrap(net, tmp_path)
    expected = outputs(model)
    calibrate(model)

    assert "6.bias" in {encoding.tensor for encoding in model.encodings()}
    check_qdq(model, expected, tmp_path)


def _column(name: str, seconds: float | None) -> Column:
    column = Column(name, Reference.__new__(Reference), [], [], ModelStatistics(1, 1, 1, 1))
    if seconds is not None:
        column.latency = pb.Latency(median_seconds=seconds)
        column.operators = pb.OperatorCounts(heavy=54, integer_heavy=13, conversions=77, total=264)
    return column


def test_a_slower_model_is_explained() -> None:
    fp32 = _column("baseline", 0.010)
    message = why_not_faster(fp32, _column("optimized", 0.016))

    assert "1.60 times" in message
    assert "13 of 54" in message
    assert "77 conversions" in message


@pytest.mark.parametrize("seconds", [0.010, 0.005, None])
def test_nothing_is_said_of_others(seconds: float | None) -> None:
    assert why_not_faster(_column("baseline", 0.010), _column("optimized", seconds)) == ""


class Images(Samples):
    """Six samples, in batches of two."""

    count = 6
    labelled = False

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        images, size = zoo.images(6)["image"], batch_size or 2
        for start in range(0, 6, size):
            yield LabelledBatch({"image": images[start : start + size]})


def test_columns_with_a_file_get_latency_and_operators(tmp_path: Path) -> None:
    onnx.save(zoo.mobile_net(batch=4), tmp_path / "fp32.onnx")
    columns = {"baseline": _column("baseline", None), "optimized": _column("optimized", None)}
    columns["baseline"].onnx = tmp_path / "fp32.onnx"
    time_columns(columns, Images(), budget_seconds=0.2)

    report = columns["baseline"].report()
    assert (report.operators.heavy, report.latency.batch_size) == (4, 4)
    assert columns["optimized"].latency is None
    assert not columns["optimized"].report().HasField("operators")
