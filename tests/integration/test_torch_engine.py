"""The torch engine with real AIMET: functions kept, grids sane, exports that run as simulated."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lighten import v1 as pb
from lighten_service.jobs.resolve import with_defaults

pytest.importorskip("aimet_torch")

from torch import nn

from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.worker import quantsim
from lighten_service.worker.context import Cancelled
from lighten_service.worker.engines import open_model, torch_export, torch_prepare
from lighten_service.worker.engines.torch_engine import TorchModel
from lighten_service.worker.graphs.coverage import tensors_without_grid
from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.model import Batch, WorkingModel
from tests.support.exact import exact_session
from tests.support.small_models import (
    SmallNet,
    architecture_spec,
    batches,
    save_weights,
    sqnr_db,
)

DATA = batches()
INT8 = pb.QuantizationConfig()
TENSOR, CHANNEL = pb.GRANULARITY_PER_TENSOR, pb.GRANULARITY_PER_CHANNEL
SYMMETRIC, ASYMMETRIC = pb.SYMMETRY_SYMMETRIC, pb.SYMMETRY_ASYMMETRIC
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def wrap(module: nn.Module, scratch: Path, opset: int = 21) -> TorchModel:
    specs = (pb.InputSpec(name="input", shape=[3, 32, 32]),)
    prepared = torch_prepare.prepare(module, torch_prepare.example_inputs(specs, seed=0))
    signature = torch_export.Signature(("input",), ("output",), opset)
    return TorchModel(prepared, specs, signature, scratch=scratch, device="cpu", seed=0)


def quantize(
    model: WorkingModel,
    quantization: pb.QuantizationConfig = INT8,
    data: list[Batch] | None = None,
    **parameters: object,
) -> dict[str, float]:
    model.fold_batch_norms()
    chosen = DATA if data is None else data
    counts = model.calibrate(
        quantization,
        with_defaults(pb.Calibrate(**parameters)),
        lambda: chosen,
        on_batch=lambda done: None,
    )
    return dict(counts)


def outputs(model: WorkingModel, data: list[Batch] | None = None) -> np.ndarray:
    name = model.output_names[0]
    return np.concatenate([model.predict(batch)[name] for batch in data or DATA])


def run_file(path: Path, level: str = "on", data: list[Batch] | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    session = exact_session(path, options)
    return np.concatenate([session.run(None, dict(batch))[0] for batch in data or DATA])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return wrap(SmallNet(), tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def model(prepared: TorchModel) -> TorchModel:
    return prepared.copy()


@pytest.fixture(scope="module")
def expected(prepared: TorchModel) -> np.ndarray:
    return outputs(prepared)


# --- float --------------------------------------------------------------------------------------


def test_preparation_keeps_the_function(expected: np.ndarray) -> None:
    with torch.no_grad():
        direct = [SmallNet()(torch.from_numpy(batch["input"])).numpy() for batch in DATA]

    np.testing.assert_array_equal(np.concatenate(direct), expected)


def test_folding_keeps_the_function(model: TorchModel, expected: np.ndarray) -> None:
    assert model.fold_batch_norms() == 3
    assert model.fold_batch_norms() == 0
    np.testing.assert_allclose(outputs(model), expected, atol=1e-6)


def test_scaling_alone_keeps_the_function_of_a_relu_network(tmp_path: Path) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        plain[0].weight[0] *= 100
    model = wrap(plain, tmp_path)
    before = outputs(model)

    assert model.equalize() == 3
    assert sqnr_db(before, outputs(model)) > 100


def test_equalization_does_what_aimet_does_wherever_folding_stands(
    model: TorchModel, prepared: TorchModel
) -> None:
    from aimet_torch.cross_layer_equalization import equalize_model

    reference = copy.deepcopy(prepared._module)
    reference.stem.set_submodule("2", nn.ReLU())
    equalize_model(reference, dummy_input=torch.zeros(1, 3, 32, 32))
    at_once, in_steps = prepared.copy(), model
    assert at_once.replace_relu6() == 1
    assert at_once.equalize() == 2
    at_once.absorb_high_biases()
    in_steps.fold_batch_norms()
    in_steps.replace_relu6()
    in_steps.equalize()
    in_steps.absorb_high_biases()

    with torch.no_grad():
        wanted = np.concatenate([reference(torch.from_numpy(b["input"])).numpy() for b in DATA])
    np.testing.assert_array_equal(outputs(at_once), wanted)
    np.testing.assert_array_equal(outputs(in_steps), wanted)


def test_absorption_moves_what_never_reaches_the_relu(tmp_path: Path) -> None:
    net = SmallNet(relu6=False)
    with torch.no_grad():
        # Ten standard deviations from zero: the ReLU after it lets everything through.
        net.depthwise[1].bias.fill_(10.0)
        net.depthwise[1].weight.fill_(-1.0)
    model = wrap(net, tmp_path)
    assert model.absorb_high_biases() == 0  # not equalized
    model.equalize()
    before, copied = outputs(model), model.copy()
    seen = model._moments["depthwise.0"]

    assert model.absorb_high_biases() == 2
    absorbed = seen.mean - model._moments["depthwise.0"].mean
    torch.testing.assert_close(absorbed, seen.mean - 3 * seen.std)
    assert sqnr_db(before, outputs(model)) > 35
    np.testing.assert_array_equal(outputs(copied), before)
    assert copied.absorb_high_biases() == 2


def test_moments_follow_scaling(model: TorchModel) -> None:
    """Scaled by hand: the weights before and after tell each channel's factor."""
    model.replace_relu6()
    model.fold_batch_norms()
    layer, moments = model._module.get_submodule("depthwise.0"), dict(model._moments)
    weight = layer.weight.detach().clone()
    model.equalize()

    factor = (layer.weight / weight).mean((1, 2, 3))
    before, after = moments["depthwise.0"], model._moments["depthwise.0"]
    torch.testing.assert_close(after.mean, before.mean * factor)
    torch.testing.assert_close(after.std, before.std * factor)
    assert moments["point.0"] is model._moments["point.0"]


def test_a_batch_norm_before_its_layer_tells_nothing_of_the_output(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    model = wrap(net, tmp_path)

    assert model.fold_batch_norms() == 1
    assert not model._moments


def test_a_copy_is_independent(model: TorchModel, expected: np.ndarray) -> None:
    other = model.copy()
    quantize(other)

    assert (other.quantized, model.quantized) == (True, False)
    np.testing.assert_array_equal(outputs(model), expected)


def test_float_export_runs_on_any_batch_size(
    model: TorchModel, expected: np.ndarray, tmp_path: Path
) -> None:
    model.export_float(tmp_path / "float.onnx")

    assert sqnr_db(expected, run_file(tmp_path / "float.onnx")) > 90
    assert run_file(tmp_path / "float.onnx", data=batches(1, 3)).shape == (3, 10)
    statistics = model.statistics()
    # 16 x 16 positions: 3x3x3 and 3x3 and 8 products for each of 8 channels; then the head.
    assert statistics.macs == 16 * 16 * 8 * (27 + 9 + 8) + 8 * 10
    assert statistics.bops == statistics.macs * 32 * 32


# --- simulation ---------------------------------------------------------------------------------


def test_wider_grids_are_more_exact(prepared: TorchModel, expected: np.ndarray) -> None:
    found = {}
    for type_ in (pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16):
        model = prepared.copy()
        counts = quantize(model, pb.QuantizationConfig(weights=type_, activations=type_))
        assert counts == {"weight_quantizers": 4, "activation_quantizers": 10}
        found[type_] = sqnr_db(expected, outputs(model))

    assert found[pb.DATA_TYPE_INT4] > 5
    assert found[pb.DATA_TYPE_INT8] > 30
    assert found[pb.DATA_TYPE_INT16] > 75


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
@pytest.mark.parametrize("weights", [SYMMETRIC, ASYMMETRIC])
@pytest.mark.parametrize("activations", [SYMMETRIC, ASYMMETRIC])
def test_grids_are_as_asked_and_files_say_the_same(
    model: TorchModel,
    expected: np.ndarray,
    tmp_path: Path,
    granularity: pb.Granularity.ValueType,
    weights: pb.Symmetry.ValueType,
    activations: pb.Symmetry.ValueType,
) -> None:
    quantization = pb.QuantizationConfig(
        weight_granularity=granularity, weight_symmetry=weights, activation_symmetry=activations
    )
    quantize(model, quantization)
    encodings = {encoding.tensor: encoding for encoding in model.encodings()}
    stem, image = encodings["stem.0.weight"], encodings["input"]

    assert len(stem.scales) == (8 if granularity == CHANNEL else 1)
    assert (stem.is_weight, image.is_weight) == (True, False)
    assert stem.symmetric == (weights == SYMMETRIC)
    assert image.symmetric == (activations == SYMMETRIC)
    assert sqnr_db(expected, outputs(model)) > 30
    check_qdq(model, expected, tmp_path)


@pytest.mark.parametrize(
    "parameters",
    [
        {"scheme": pb.RANGE_SCHEME_MIN_MAX},
        {"scheme": pb.RANGE_SCHEME_SQNR},
        {"scheme": pb.RANGE_SCHEME_PERCENTILE},
        {"scheme": pb.RANGE_SCHEME_PERCENTILE, "percentile": 95.0},
    ],
)
def test_every_scheme(
    model: TorchModel, expected: np.ndarray, tmp_path: Path, parameters: dict[str, object]
) -> None:
    quantize(model, **parameters)

    scale = {e.tensor: e.scales[0] for e in model.encodings()}["input"]
    largest = max(float(np.abs(batch["input"]).max()) for batch in DATA)
    if parameters.get("percentile"):
        assert scale * 255 < 0.6 * 2 * largest
    assert sqnr_db(expected, outputs(model)) > (15 if parameters.get("percentile") else 30)
    check_qdq(model, expected, tmp_path)


@pytest.mark.parametrize("name", quantsim.hardware_configs())
def test_every_hardware_config(
    model: TorchModel, expected: np.ndarray, tmp_path: Path, name: str
) -> None:
    quantize(model, pb.QuantizationConfig(hardware_config=name))

    assert sqnr_db(expected, outputs(model)) > 30
    check_qdq(model, expected, tmp_path)


def test_symmetric_activations_of_a_hardware_config_are_not_cut(
    model: TorchModel, expected: np.ndarray
) -> None:
    quantize(model, pb.QuantizationConfig(hardware_config="htp_v73", activation_symmetry=SYMMETRIC))

    # With AIMET's one-sided bounds the sigmoid ends at 0.5, and this is 11 dB.
    assert sqnr_db(expected, outputs(model)) > 30


def test_a_depthwise_convolution_and_its_relu_share_one_quantizer(
    model: TorchModel, prepared: TorchModel
) -> None:
    quantize(model)
    hardware = prepared.copy()
    quantize(hardware, pb.QuantizationConfig(hardware_config="htp_v73"))

    assert model._module.depthwise.get_submodule("0").output_quantizers[0] is None
    assert model._module.depthwise.get_submodule("2").output_quantizers[0] is not None
    assert hardware._module.depthwise.get_submodule("0").output_quantizers[0] is not None


@pytest.mark.parametrize("bits", [pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16])
def test_biases_fit_into_32_bits(tmp_path: Path, bits: pb.DataType.ValueType) -> None:
    net = SmallNet()
    with torch.no_grad():
        # A channel that says nothing but its bias: its grid would be 1e-12 wide.
        net.point[0].weight[0] *= 1e-9
        net.point[1].bias[0] = 3.0
    model = wrap(net, tmp_path)
    reference = outputs(model)
    quantize(model, pb.QuantizationConfig(weights=bits, activations=bits))

    assert sqnr_db(reference, outputs(model)) > 30
    check_qdq(model, reference, tmp_path)


def test_parts_that_never_run_need_no_range(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x, _ = self.attention(x, x, x, need_weights=False)
            return self.head(x.mean(1))

    torch.manual_seed(0)
    model = wrap(Attention().eval(), tmp_path)
    reference = outputs(model)
    quantize(model)

    assert sqnr_db(reference, outputs(model)) > 25
    check_qdq(model, reference, tmp_path)


def test_calibration_is_cancelled_between_batches(model: TorchModel) -> None:
    seen = []

    def on_batch(done: int) -> None:
        seen.append(done)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.calibrate(INT8, pb.Calibrate(), lambda: DATA, on_batch=on_batch)
    assert seen == [1, 2]


def test_empty_and_broken_data_are_refused(prepared: TorchModel) -> None:
    with pytest.raises(FailedPrecondition) as empty:
        quantize(prepared.copy(), data=[])
    assert (empty.value.reason, empty.value.field) == ("EMPTY_CALIBRATION_DATA", "calibration.data")

    infinite = [{"input": np.full((2, 3, 32, 32), np.inf, np.float32)}]
    with pytest.raises(FailedPrecondition) as broken:
        quantize(prepared.copy(), data=infinite)
    assert broken.value.reason in {"NON_FINITE_RANGES", "UNCALIBRATED_QUANTIZERS"}


def test_a_model_without_places_for_quantizers_is_refused(tmp_path: Path) -> None:
    model = wrap(nn.Sequential(nn.Flatten()).eval(), tmp_path)

    with pytest.raises(FailedPrecondition) as caught:
        quantize(model)

    assert caught.value.reason == "NO_QUANTIZERS"


def test_float_steps_and_exports_know_their_place(model: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="calibrate"):
        model.export_qdq(tmp_path / "q.onnx")
    quantize(model)
    for step in (model.fold_batch_norms, model.copy, model.equalize, model.replace_relu6):
        with pytest.raises(FailedPrecondition, match="before calibrate"):
            step()


# --- files --------------------------------------------------------------------------------------


def check_qdq(model: TorchModel, expected: np.ndarray, folder: Path) -> None:
    """The gates of a job: grids, coverage, one file, and ONNX Runtime as good as the simulation."""
    folder = folder / "out"
    folder.mkdir()
    model.export_qdq(folder / "q.onnx")
    model.export_float(folder / "float.onnx")
    assert {path.name for path in folder.iterdir()} == {"q.onnx", "float.onnx"}
    graph, encodings = onnx.load(folder / "q.onnx"), model.encodings()
    onnx.checker.check_model(graph, full_check=True)
    assert grid_differences(read_grids(graph), encodings) == []
    names = {encoding.tensor for encoding in encodings}
    assert tensors_without_grid(onnx.load(folder / "float.onnx"), names) == ()
    simulated = outputs(model)
    simulated_db = sqnr_db(expected, simulated)
    for level in LEVELS:
        ran = run_file(folder / "q.onnx", level)
        # Above 40 dB a single step of an integer kernel in 320 outputs shows.
        assert sqnr_db(expected, ran) > min(simulated_db, 41.0) - 1.0
        assert sqnr_db(simulated, ran) > min(simulated_db, 41.0) - 1.0
    # AIMET simulates float biases, the file has them on the grid of the accumulator.
    round_biases(model, {e.tensor: e.scales for e in encodings if e.bits == 32})
    assert sqnr_db(outputs(model), run_file(folder / "q.onnx", "off")) > 60


def round_biases(model: TorchModel, scales: dict[str, tuple[float, ...]]) -> None:
    with torch.no_grad():
        for name, parameter in model._module.named_parameters():
            if name in scales:
                grid = torch.tensor(scales[name], dtype=torch.float64)
                parameter.copy_(torch.round(parameter / grid) * grid)


@pytest.mark.parametrize("opset", range(17, 25))
def test_every_opset(
    prepared: TorchModel, expected: np.ndarray, tmp_path: Path, opset: int
) -> None:
    model = prepared.copy()
    model._signature = torch_export.Signature(("input",), ("output",), opset)
    quantize(model)

    check_qdq(model, expected, tmp_path)
    for name in ("q.onnx", "float.onnx"):
        graph = onnx.load(tmp_path / "out" / name)
        assert {(e.domain, e.version) for e in graph.opset_import} == {("", opset)}


@pytest.mark.parametrize("weights", [pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT16])
@pytest.mark.parametrize("activations", [pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16])
def test_other_widths_run(
    model: TorchModel,
    expected: np.ndarray,
    tmp_path: Path,
    weights: pb.DataType.ValueType,
    activations: pb.DataType.ValueType,
) -> None:
    quantize(model, pb.QuantizationConfig(weights=weights, activations=activations))

    check_qdq(model, expected, tmp_path)


def test_a_low_opset_is_refused_for_wide_and_narrow_types(
    prepared: TorchModel, tmp_path: Path
) -> None:
    model = prepared.copy()
    model._signature = torch_export.Signature(("input",), ("output",), 20)
    quantize(model, pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4))

    with pytest.raises(InvalidArgument) as caught:
        model.export_qdq(tmp_path / "q.onnx")

    assert (caught.value.reason, caught.value.field) == ("OPSET_TOO_LOW", "outputs.opset")


@pytest.mark.parametrize("version", list(pb.EncodingsVersion.values())[1:])
def test_encodings_files_name_tensors_of_the_float_graph(
    model: TorchModel, tmp_path: Path, version: pb.EncodingsVersion.ValueType
) -> None:
    quantize(model)
    model.export_encodings(tmp_path / "a.encodings", version)
    model.export_float(tmp_path / "float.onnx")

    document = json.loads((tmp_path / "a.encodings").read_text())
    graph = onnx.load(tmp_path / "float.onnx").graph
    known = {i.name for i in graph.initializer} | {i.name for i in graph.input}
    known |= {name for node in graph.node for name in node.output}
    names = torch_export.encoded_tensors(document)
    wanted = pb.EncodingsVersion.Name(version).removeprefix("ENCODINGS_VERSION_").replace("_", ".")
    assert document["version"] == wanted
    # Older versions leave the grids of biases to their reader, as AIMET does.
    biases = set() if wanted == "2.0.0" else {"depthwise.0", "head", "point.0", "stem.0"}
    assert names == {e.tensor for e in model.encodings()} - {f"{name}.bias" for name in biases}
    assert names <= known


def test_relu_and_clip_go_where_the_grid_enforces_them(model: TorchModel, tmp_path: Path) -> None:
    quantize(model)
    model.export_qdq(tmp_path / "q.onnx")

    operators = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert not {"Relu", "Clip", "Identity"} & set(operators)


# --- architectures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights("mobilenet_v2", tmp_path_factory.mktemp("weights") / "w.safetensors")


MOBILENET = textwrap.dedent(
    """
    import hashlib, sys
    from pathlib import Path
    from lighten import v1 as pb
    from lighten_service.worker.engines import open_model
    from tests.support.small_models import architecture_spec, batches
    spec = architecture_spec("mobilenet_v2", 32)
    folder = Path(sys.argv[2])
    model = open_model(spec, Path(sys.argv[1]), scratch=folder, device="cpu", seed=0)
    model.fold_batch_norms()
    model.calibrate(pb.QuantizationConfig(), pb.Calibrate(), lambda: batches(2), on_batch=print)
    model.export_qdq(folder / "q.onnx")
    model.export_float(folder / "f.onnx")
    model.export_encodings(folder / "e.json", pb.ENCODINGS_VERSION_2_0_0)
    """
)


def test_two_processes_write_the_same_bytes(mobilenet_weights: Path, tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", MOBILENET, mobilenet_weights, folder],
            check=True,
            capture_output=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(number + 1)},
        )
        digests.append([
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("q.onnx", "f.onnx", "e.json")
        ])  # fmt: skip
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_an_architecture_from_weights_to_integers(
    name: str, mobilenet_weights: Path, tmp_path: Path
) -> None:
    weights = (
        mobilenet_weights
        if name == "mobilenet_v2"
        else save_weights(name, tmp_path / "w.safetensors")
    )
    model = open_model(architecture_spec(name, 64), weights, scratch=tmp_path, device="cpu", seed=0)
    data = batches(2, side=64)
    reference = outputs(model, data)
    assert model.fold_batch_norms() == {"mobilenet_v2": 52, "resnet18": 20}[name]
    float_bytes = model.statistics().weight_bytes
    quantize(model, data=data)
    simulated = outputs(model, data)
    model.export_qdq(tmp_path / "q.onnx")
    first = (tmp_path / "q.onnx").read_bytes()
    model.export_qdq(tmp_path / "q.onnx")

    assert (tmp_path / "q.onnx").read_bytes() == first
    assert len(first) < 0.3 * float_bytes
    assert grid_differences(read_grids(onnx.load(tmp_path / "q.onnx")), model.encodings()) == []
    simulated_db = sqnr_db(reference, simulated)
    assert simulated_db > 15
    for level in LEVELS:
        assert sqnr_db(reference, run_file(tmp_path / "q.onnx", level, data)) > simulated_db - 1.0
    model.close()


@pytest.mark.parametrize(
    ("shape", "name", "reason"),
    [
        ([1, 32, 32], "input", "INPUT_MISMATCH"),
        ([3, 32, 32], "0", "INVALID_INPUT_NAME"),
        ([3, 32, 32], "output", "INVALID_INPUT_NAME"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    mobilenet_weights: Path, tmp_path: Path, shape: list[int], name: str, reason: str
) -> None:
    spec = architecture_spec("mobilenet_v2", 32)
    spec.model.inputs[0].CopyFrom(pb.InputSpec(name=name, shape=shape))

    with pytest.raises(InvalidArgument) as caught:
        open_model(spec, mobilenet_weights, scratch=tmp_path, device="cpu", seed=0)

    assert caught.value.reason == reason
    assert caught.value.field.startswith("model.inputs")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(mobilenet_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no usable GPU"):
        open_model(
            architecture_spec("mobilenet_v2", 32),
            mobilenet_weights,
            scratch=tmp_path,
            device="cuda:0",
            seed=0,
        )
