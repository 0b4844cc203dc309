"""The ONNX engine with the real aimet-onnx and ONNX Runtime on small generated models."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from lighten import v1 as pb

pytest.importorskip("aimet_onnx")

from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.worker.context import Cancelled
from lighten_service.worker.engines.onnx_engine import OnnxModel, open_onnx_model
from lighten_service.worker.graphs.coverage import tensors_without_grid
from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.graphs.save import load_with_external
from lighten_service.worker.model import Batch, Outputs
from lighten_service.worker.runtime import GraphSession
from tests.support import onnx_models as zoo
from tests.support.exact import exact
from tools.packages import unpack

INT8 = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT8, activations=pb.DATA_TYPE_INT8)
MIN_MAX = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
Opener = Callable[..., OnnxModel]


@pytest.fixture
def open_model(tmp_path: Path) -> Iterator[Opener]:
    opened: list[OnnxModel] = []

    def opener(proto: onnx.ModelProto, spec: pb.JobSpec | None = None) -> OnnxModel:
        file = tmp_path / f"upload{len(opened)}.onnx"
        onnx.save(proto, str(file))
        model = open_onnx_model(spec or pb.JobSpec(), file, scratch=tmp_path, device="cpu", seed=0)
        opened.append(model)
        return model

    yield opener
    for model in opened:
        model.close()


def calibrate(
    model: OnnxModel,
    batch: Batch,
    quantization: pb.QuantizationConfig = INT8,
    parameters: pb.Calibrate = MIN_MAX,
) -> dict[str, float]:
    return dict(
        model.calibrate(quantization, parameters, lambda: [batch], on_batch=lambda done: None)
    )


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    noise = float(((expected - actual) ** 2).sum())
    return 10 * np.log10(float((expected**2).sum()) / max(noise, 1e-20))


def worst_sqnr(expected: Outputs, actual: Outputs) -> float:
    return min(sqnr(expected[name], actual[name]) for name in expected)


NETWORKS = [
    pytest.param(lambda: zoo.mobile_net(9), zoo.images(8), id="convolutions-opset9"),
    pytest.param(lambda: zoo.mobile_net(13), zoo.images(8), id="convolutions-opset13"),
    pytest.param(lambda: zoo.mobile_net(21), zoo.images(8), id="convolutions-opset21"),
    pytest.param(lambda: zoo.mobile_net(24), zoo.images(8), id="convolutions-opset24"),
    pytest.param(lambda: zoo.attention(13), zoo.tokens(8), id="attention-opset13"),
    pytest.param(lambda: zoo.attention(17), zoo.tokens(8), id="attention-opset17"),
]


@pytest.mark.parametrize(("build", "batch"), NETWORKS)
def test_exported_qdq_is_the_simulation(
    build: Callable[[], onnx.ModelProto], batch: Batch, open_model: Opener, tmp_path: Path
) -> None:
    model = open_model(build())
    reference = model.predict(batch)
    model.fold_batch_norms()
    counts = calibrate(model, batch)
    simulated = model.predict(batch)
    file = tmp_path / "model.qdq.onnx"
    model.export_qdq(file)

    assert counts["weight_quantizers"] >= 4
    assert counts["activation_quantizers"] >= 5
    assert tuple(simulated) == tuple(reference) == model.output_names
    assert worst_sqnr(reference, simulated) > 20
    for optimize in (False, True):
        real = GraphSession(exact(file), optimize=optimize).predict(batch)
        assert tuple(real) == model.output_names
        assert worst_sqnr(simulated, real) > 30
        assert worst_sqnr(reference, real) > worst_sqnr(reference, simulated) - 1


@pytest.mark.parametrize(("build", "batch"), NETWORKS[1::3])
def test_graph_and_encodings_agree(
    build: Callable[[], onnx.ModelProto], batch: Batch, open_model: Opener, tmp_path: Path
) -> None:
    model = open_model(build())
    model.fold_batch_norms()
    calibrate(model, batch)
    model.export_qdq(tmp_path / "q.onnx")
    model.export_float(tmp_path / "f.onnx")
    grids = read_grids(load_with_external(tmp_path / "q.onnx"))
    names = {encoding.tensor for encoding in model.encodings()}

    assert grid_differences(grids, model.encodings()) == []
    assert tensors_without_grid(load_with_external(tmp_path / "f.onnx"), names) == ()
    assert any(encoding.is_weight and len(encoding.scales) > 1 for encoding in model.encodings())


def test_weights_are_stored_as_integers(open_model: Opener, tmp_path: Path) -> None:
    model = open_model(zoo.mobile_net())
    model.fold_batch_norms()
    calibrate(model, zoo.images(8))
    model.export_qdq(tmp_path / "q.onnx")
    graph = load_with_external(tmp_path / "q.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}

    for layer in ("stem", "depthwise", "point", "head"):
        assert types[f"{layer}.weight_q"] == onnx.TensorProto.INT8
        assert f"{layer}.weight" not in types
    for layer in ("point", "head"):
        assert types[f"{layer}.bias_q"] == onnx.TensorProto.INT32


def test_clean_graph_has_no_activation_left(open_model: Opener, tmp_path: Path) -> None:
    """The quantizers enforce every ReLU and ReLU6, and bounds are no quantized tensors."""
    model = open_model(zoo.mobile_net())
    model.fold_batch_norms()
    calibrate(model, zoo.images(8))
    model.export_qdq(tmp_path / "q.onnx")
    graph = load_with_external(tmp_path / "q.onnx").graph

    assert not {node.op_type for node in graph.node} & {"Clip", "Relu", "BatchNormalization"}
    # Image, one for each of four layers, and the pooled features before and after Flatten.
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 7
    grids = {encoding.tensor: encoding.scales for encoding in model.encodings()}
    assert grids["depthwise"] == grids["depthwise_act"]


def test_a_hardware_configuration_decides_about_depthwise_layers(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    calibrate(model, zoo.images(8), pb.QuantizationConfig(hardware_config="htp_v73"))

    grids = {encoding.tensor: encoding.scales for encoding in model.encodings()}
    assert grids["depthwise"] != grids["depthwise_act"]


def test_softmax_has_the_grid_of_integer_kernels(open_model: Opener) -> None:
    model = open_model(zoo.attention())
    calibrate(model, zoo.tokens(8))
    grids = {encoding.tensor: encoding for encoding in model.encodings()}

    assert grids["weights"].scales == pytest.approx((1 / 256,))
    assert grids["weights"].offsets == (0,)


def test_folding_keeps_the_function(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    batch = zoo.images(4)
    before = model.predict(batch)

    assert model.fold_batch_norms() == 1
    np.testing.assert_allclose(model.predict(batch)["logits"], before["logits"], atol=1e-5)
    assert model.fold_batch_norms() == 0


def test_equalization_scales_and_keeps_the_function(open_model: Opener) -> None:
    model = open_model(zoo.relu_net(batch_norm=False))
    batch = zoo.images(4, size=12)
    before, weights = model.predict(batch), _weights(model)

    assert model.equalize() == 3
    assert worst_sqnr(before, model.predict(batch)) > 100
    assert any(not np.array_equal(weights[name], new) for name, new in _weights(model).items())


def test_equalization_is_the_same_after_a_step_that_folds(open_model: Opener) -> None:
    at_once = open_model(zoo.relu_net())
    in_steps = at_once.copy()
    batch = zoo.images(4, size=12)
    at_once.equalize()
    in_steps.fold_batch_norms()
    in_steps = in_steps.copy()
    in_steps.equalize()

    np.testing.assert_array_equal(at_once.predict(batch)["third"], in_steps.predict(batch)["third"])
    in_steps.close()


def test_relu6_stays_unless_replaced(open_model: Opener) -> None:
    kept = open_model(zoo.mobile_net())
    replaced = kept.copy()
    # Beyond 6 for some activations, so that the two functions differ.
    batch = {"image": zoo.images(4)["image"] * 20}
    before = kept.predict(batch)
    kept.equalize()
    count = replaced.replace_relu6()

    assert worst_sqnr(before, kept.predict(batch)) > 100
    assert count == 2
    assert replaced.equalize() == 3
    assert replaced.replace_relu6() == 0
    assert worst_sqnr(before, replaced.predict(batch)) < 40


def test_the_clip_of_a_hard_swish_stays(open_model: Opener) -> None:
    model = open_model(zoo.hard_swish())

    assert model.replace_relu6() == 0
    assert "Clip" in {node.op_type for node in model.graph().graph.node}


def test_absorption_moves_what_a_relu_never_cuts(open_model: Opener) -> None:
    model = open_model(zoo.high_bias_net())
    batch = zoo.images(4, size=12)
    assert model.absorb_high_biases() == 0
    model.equalize()
    before, old = model.predict(batch), _weights(model)
    copy = model.copy()

    assert model.absorb_high_biases() == copy.absorb_high_biases() == 2
    new = _weights(model)
    assert worst_sqnr(before, model.predict(batch)) > 30
    bias = next(name for name, values in old.items() if "bias" in name and values.shape == (8,))
    # Nagel et al. 2019: beta - 3 gamma = 5 - 0.6, before the channels were scaled.
    np.testing.assert_allclose(new[bias] / old[bias], 0.6 / 5, rtol=1e-4)
    # Nothing is left to move.
    assert model.absorb_high_biases() == 0
    copy.close()


def test_copies_are_independent(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    batch = zoo.images(4)
    copy = model.copy()
    before = model.predict(batch)["logits"]
    copy.fold_batch_norms()
    calibrate(copy, batch)

    assert copy.quantized
    assert not model.quantized
    np.testing.assert_array_equal(model.predict(batch)["logits"], before)
    with pytest.raises(FailedPrecondition, match="float"):
        copy.copy()
    copy.close()


def test_any_batch_size_through_a_fixed_batch(open_model: Opener, tmp_path: Path) -> None:
    fixed, free = open_model(zoo.mobile_net(batch=4)), open_model(zoo.mobile_net())
    batch = zoo.images(6)

    expected = free.predict(batch)["logits"]
    np.testing.assert_allclose(fixed.predict(batch)["logits"], expected, atol=1e-6)
    calibrate(fixed, batch)
    fixed.export_qdq(tmp_path / "q.onnx")
    assert GraphSession(tmp_path / "q.onnx").predict(batch)["logits"].shape == (6, 5)


@pytest.mark.parametrize("scheme", [pb.RANGE_SCHEME_SQNR, pb.RANGE_SCHEME_PERCENTILE])
def test_schemes_choose_other_ranges(scheme: pb.RangeScheme.ValueType, open_model: Opener) -> None:
    batch = {"image": zoo.images(64)["image"] ** 3}
    scales = []
    for parameters in (MIN_MAX, pb.Calibrate(scheme=scheme, percentile=95)):
        model = open_model(zoo.mobile_net())
        calibrate(model, batch, parameters=parameters)
        scales.append({e.tensor: e.scales[0] for e in model.encodings()}["image"])

    assert scales[1] < scales[0]


@pytest.mark.parametrize(
    ("weights", "activations", "least"),
    [
        (pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, 8),
        (pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16, 30),
        (pb.DATA_TYPE_INT16, pb.DATA_TYPE_INT16, 60),
    ],
)
@pytest.mark.parametrize(("build", "batch"), [NETWORKS[1].values, NETWORKS[5].values])
def test_other_widths_run(
    weights: pb.DataType.ValueType,
    activations: pb.DataType.ValueType,
    least: float,
    build: Callable[[], onnx.ModelProto],
    batch: Batch,
    open_model: Opener,
    tmp_path: Path,
) -> None:
    model = open_model(build())
    model.fold_batch_norms()
    reference = model.predict(batch)
    calibrate(model, batch, pb.QuantizationConfig(weights=weights, activations=activations))
    model.export_qdq(tmp_path / "q.onnx")
    real = GraphSession(exact(tmp_path / "q.onnx")).predict(batch)

    assert worst_sqnr(reference, real) > least
    assert worst_sqnr(model.predict(batch), real) > 30
    grids = read_grids(load_with_external(tmp_path / "q.onnx"))
    assert grid_differences(grids, model.encodings()) == []


@pytest.mark.parametrize("weights", [pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16])
def test_statistics_follow_the_widths(weights: pb.DataType.ValueType, open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    model.fold_batch_norms()
    before = model.statistics()
    calibrate(model, zoo.images(4), pb.QuantizationConfig(weights=weights))
    after = model.statistics()
    bits = {pb.DATA_TYPE_INT4: 4, pb.DATA_TYPE_INT8: 8, pb.DATA_TYPE_INT16: 16}[weights]

    assert (after.macs, after.parameters) == (before.macs, before.parameters)
    assert before.bops == before.macs * 32 * 32
    assert after.bops == after.macs * bits * 8


def test_calibration_stops_when_asked(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(done)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.calibrate(INT8, MIN_MAX, lambda: [zoo.images(2)] * 5, on_batch=stop)
    assert seen == [1, 2]
    assert not model.quantized


def test_no_data_is_an_error_and_not_a_model_without_ranges(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    with pytest.raises(FailedPrecondition) as caught:
        model.calibrate(INT8, MIN_MAX, list, on_batch=lambda done: None)
    assert caught.value.reason == "EMPTY_CALIBRATION_DATA"
    assert not model.quantized


def test_data_that_are_not_finite_are_no_ranges(open_model: Opener) -> None:
    model = open_model(zoo.mobile_net())
    batch = zoo.images(2)
    batch["image"][0, 0, 0, 0] = np.inf
    with pytest.raises(FailedPrecondition) as caught:
        calibrate(model, batch)
    assert caught.value.reason == "NON_FINITE_RANGES"
    assert not model.quantized


def test_widths_that_onnx_runtime_cannot_run_are_refused(
    open_model: Opener, tmp_path: Path
) -> None:
    b = zoo.Builder(17)
    pooled = b.add("MaxPool", [b.conv("image", "c", (3, 4))], "p", kernel_shape=[2, 2])
    b.conv(pooled, "y", (4, 4))
    model = open_model(
        b.model([zoo.tensor("image", ["N", 3, 16, 16])], [zoo.tensor("y", ["N", 4, 15, 15])])
    )
    calibrate(model, zoo.images(2), pb.QuantizationConfig(activations=pb.DATA_TYPE_INT4))
    with pytest.raises(FailedPrecondition, match="uint4") as caught:
        model.export_qdq(tmp_path / "q.onnx")
    assert caught.value.reason == "QDQ_NOT_RUNNABLE"
    assert not (tmp_path / "q.onnx").exists()


def test_an_upload_with_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "upload"
    folder.mkdir()
    zoo.save_with_external_data(zoo.mobile_net(), folder / "m.onnx", "weights.bin")
    model = open_onnx_model(pb.JobSpec(), folder, scratch=tmp_path, device="cpu", seed=0)
    model.export_float(tmp_path / "float.onnx")
    model.close()

    assert {path.name for path in tmp_path.iterdir()} == {"upload", "float.onnx"}
    GraphSession(tmp_path / "float.onnx").predict(zoo.images(1))


def test_branches_stay_as_they_are(open_model: Opener, tmp_path: Path) -> None:
    model = open_model(zoo.branches())
    batch = zoo.images(4)
    reference = model.predict(batch)
    calibrate(model, batch)
    model.export_qdq(tmp_path / "q.onnx")

    real = GraphSession(exact(tmp_path / "q.onnx")).predict(batch)
    assert worst_sqnr(reference, real) > 20


@pytest.mark.slow
def test_a_real_upload_of_the_wild(tmp_path: Path) -> None:
    """The orientation classifier of rapidocr-onnxruntime 1.4.4 (downloads 15 MB once)."""
    root = Path(__file__).parents[2]
    packages = unpack(root / "requirements/models.txt", root / ".cache/models", lambda: None)
    models = packages / "rapidocr_onnxruntime" / "models"
    file = models / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    spec = pb.JobSpec()
    spec.model.inputs.add(name="x", shape=[3, 48, 192])
    model = open_onnx_model(spec, file, scratch=tmp_path, device="cpu", seed=0)
    batch = {"x": np.random.default_rng(0).standard_normal((64, 3, 48, 192)).astype(np.float32)}
    reference = model.predict(batch)

    assert model.fold_batch_norms() == 35
    calibrate(model, batch)
    simulated = model.predict(batch)
    model.export_qdq(tmp_path / "q.onnx")
    model.close()
    for optimize in (False, True):
        real = GraphSession(exact(tmp_path / "q.onnx"), optimize=optimize).predict(batch)
        # Two classes on a grid of 1/256: single steps move the figure by 1 dB, either way.
        assert worst_sqnr(reference, real) > worst_sqnr(reference, simulated) - 2
    # Grids and names weigh much in a model of 0.5 MB.
    assert (tmp_path / "q.onnx").stat().st_size < 0.55 * file.stat().st_size


def test_a_model_without_layers_is_refused(open_model: Opener) -> None:
    b = zoo.Builder(17)
    b.add("Flatten", ["image"], "flat")
    model = open_model(b.model([zoo.tensor("image", ["N", 3, 2])], [zoo.tensor("flat", ["N", 6])]))
    with pytest.raises(FailedPrecondition) as caught:
        calibrate(model, {"image": np.ones((1, 3, 2), np.float32)})
    assert caught.value.reason == "NO_QUANTIZERS"


def test_a_batch_that_is_only_declared_open_is_fixed(open_model: Opener) -> None:
    b = zoo.Builder(17)
    flat = b.add("Reshape", ["image", b.constant("shape", np.array([1, 12]))], "flat")
    b.add("Gemm", [flat, b.weight("w", 12, 4)], "y")
    model = open_model(b.model([zoo.tensor("image", ["N", 3, 2, 2])], [zoo.tensor("y", ["N", 4])]))

    assert model.predict({"image": np.ones((3, 3, 2, 2), np.float32)})["y"].shape == (3, 4)


def test_an_output_without_a_batch_is_refused(open_model: Opener) -> None:
    b = zoo.Builder(17)
    b.add("ReduceMean", [b.conv("image", "c", (3, 4))], "y", axes=[0, 1, 2, 3], keepdims=0)
    proto = b.model([zoo.tensor("image", ["N", 3, 8, 8])], [zoo.tensor("y", [])])
    with pytest.raises(InvalidArgument) as caught:
        open_model(proto)
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED_BATCH", "model.artifact")


def test_close_removes_the_files(open_model: Opener, tmp_path: Path) -> None:
    model = open_model(zoo.mobile_net())
    calibrate(model, zoo.images(2))
    model.close()

    assert [path.name for path in tmp_path.iterdir()] == ["upload0.onnx"]


EXPORT = """
import sys
from pathlib import Path
import onnx
from lighten import v1 as pb
from lighten_service.worker.engines.onnx_engine import open_onnx_model
from tests.support import onnx_models as zoo
from tools.packages import unpack

folder = Path(sys.argv[1])
onnx.save(zoo.mobile_net(13), str(folder / "upload.onnx"))
model = open_onnx_model(
    pb.JobSpec(), folder / "upload.onnx", scratch=folder, device="cpu", seed=0
)
model.fold_batch_norms()
model.replace_relu6()
model.equalize()
model.absorb_high_biases()
model.calibrate(
    pb.QuantizationConfig(), pb.Calibrate(), lambda: [zoo.images(8)], on_batch=lambda done: None
)
model.export_float(folder / "float.onnx")
model.export_qdq(folder / "qdq.onnx")
model.export_encodings(folder / "encodings.json", pb.ENCODINGS_VERSION_2_0_0)
model.export_qdq(folder / "again.onnx")
model.close()
"""


def test_artifacts_are_equal_byte_for_byte_in_two_processes(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed}
        subprocess.run(
            [sys.executable, "-c", EXPORT, str(folder)],
            check=True,
            env=environment,
            timeout=120,
            capture_output=True,
        )
        digests.append(
            {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        )

    assert digests[0] == digests[1]
    assert digests[0]["qdq.onnx"] == digests[0]["again.onnx"]
    # One file each, nothing beside it.
    expected = {"upload.onnx", "float.onnx", "qdq.onnx", "again.onnx", "encodings.json"}
    assert set(digests[0]) == expected


@pytest.mark.parametrize(
    "version",
    [pb.ENCODINGS_VERSION_0_6_1, pb.ENCODINGS_VERSION_1_0_0, pb.ENCODINGS_VERSION_2_0_0],
)
def test_encodings_of_every_version_name_the_weights(
    version: pb.EncodingsVersion.ValueType, open_model: Opener, tmp_path: Path
) -> None:
    model = open_model(zoo.mobile_net())
    calibrate(model, zoo.images(4))
    model.export_encodings(tmp_path / "e.json", version)
    text = (tmp_path / "e.json").read_text()

    name = pb.EncodingsVersion.Name(version).removeprefix("ENCODINGS_VERSION_").replace("_", ".")
    assert f'"version": "{name}"' in text
    for layer in ("stem", "depthwise", "point", "head"):
        assert f"{layer}.weight" in text


def _weights(model: OnnxModel) -> dict[str, np.ndarray]:
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model._model.graph.initializer
    }
