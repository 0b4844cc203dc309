"""The opened simulation of aimet-torch: walks, grids, switches, types, and what selectors find."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lighten import v1 as pb

pytest.importorskip("aimet_torch")

from torch import nn

from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.worker.context import Cancelled
from lighten_service.worker.engines import open_model, torch_export, torch_prepare
from lighten_service.worker.engines.torch_engine import TorchModel
from lighten_service.worker.graphs.qdq import grid_differences, read_grids
from lighten_service.worker.quantized import Layer, QuantizedModel, Visit
from tests.support.exact import exact_session
from tests.support.small_models import (
    SmallNet,
    architecture_spec,
    batches,
    save_weights,
    sqnr_db,
)

DATA = batches(2)
LAYERS = ["stem.0", "depthwise.0", "point.0", "head"]
INPUT = [pb.InputSpec(name="input", shape=[3, 32, 32])]


class Branches(nn.Module):
    """What SmallNet has not: linear layers of every form, a transposed and an asymmetrically
    padded convolution, one reused in place, an input read twice, an operator of several parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.same = nn.Conv2d(3, 6, 4, padding="same", bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(3, 6, 3, 1, 1, groups=3)
        self.silu = nn.SiLU()
        self.tokens = nn.Linear(6, 5)
        self.plain = nn.Linear(5, 5, bias=False)
        self.clip = nn.Hardtanh(-0.5, 0.5)
        self.head = nn.Linear(5, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.same(x)) + self.silu(self.up(x))
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(self.clip(self.plain(x.mean(1))))


def wrap(module: nn.Module, scratch: Path) -> TorchModel:
    prepared = torch_prepare.prepare(module, torch_prepare.example_inputs(INPUT, seed=0))
    signature = torch_export.Signature(("input",), ("output",), 21)
    return TorchModel(prepared, tuple(INPUT), signature, scratch=scratch, device="cpu", seed=0)


def calibrate(
    model: TorchModel, quantization: pb.QuantizationConfig | None = None, **parameters: object
) -> QuantizedModel:
    model.fold_batch_norms()
    model.calibrate(
        quantization or pb.QuantizationConfig(),
        pb.Calibrate(**parameters),
        lambda: DATA,
        on_batch=lambda done: None,
    )
    return model.quantized_model()


def walk(quantized: QuantizedModel, quantize_activations: bool = True) -> list[Visit]:
    return list(quantized.walk(DATA, quantize_activations=quantize_activations, check=lambda: None))


def outputs(model: TorchModel) -> np.ndarray:
    return np.concatenate([model.predict(batch)["output"] for batch in DATA])


def layer(quantized: QuantizedModel, name: str) -> Layer:
    return next(found for found in quantized.layers() if found.name == name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return wrap(SmallNet(), tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def model(prepared: TorchModel) -> TorchModel:
    return prepared.copy()


# --- layers -------------------------------------------------------------------------------------


def test_layers_are_those_of_the_exported_graph(model: TorchModel) -> None:
    with pytest.raises(FailedPrecondition, match="calibrate"):
        model.quantized_model()
    quantized = calibrate(model)
    graph = model.graph().graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    assert [found.name for found in quantized.layers()] == LAYERS
    for found in quantized.layers():
        node = next(node for node in graph.node if found.output in node.output)
        assert (node.op_type, node.input[1]) == (found.op, found.weight)
        assert shapes[found.weight] == found.weight_shape
    assert [found.activation for found in quantized.layers()] == [
        (0.0, 6.0), (0.0, np.inf), None, None,
    ]  # fmt: skip
    assert layer(quantized, "depthwise.0").kernel.depthwise
    assert set(quantized.moments()) == set(LAYERS) - {"head"}


def test_kernels_compute_what_the_layers_do(tmp_path: Path) -> None:
    module = Branches()
    quantized = calibrate(wrap(module, tmp_path))
    seen: dict[str, torch.Tensor] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    with torch.no_grad():
        module(torch.from_numpy(DATA[0]["input"]))

    found = {visit.layer.name: visit for visit in walk(quantized)}
    operators = [(name, visit.layer.op) for name, visit in found.items()]
    assert operators == [
        ("same", "Conv"),
        ("up", "ConvTranspose"),
        ("tokens", "MatMul"),
        ("plain", "MatMul"),
        ("head", "Gemm"),
    ]
    for name, visit in found.items():
        torch.testing.assert_close(visit.float_output(0), seen[name], atol=1e-5, rtol=1e-5)
    assert found["plain"].layer.activation == (-0.5, 0.5)


# --- walks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("module", [SmallNet, Branches])
def test_a_walk_computes_what_the_models_do(
    module: Callable[[], nn.Module], tmp_path: Path, activations: bool
) -> None:
    model = wrap(module(), tmp_path)
    quantized = calibrate(model)
    on = [q.name for q in quantized.quantizers() if q.is_weight or activations]
    simulated, floats = inputs_of_layers(model, on), inputs_of_layers(model, [])
    visits = walk(quantized, activations)

    assert [visit.layer for visit in visits] == list(quantized.layers())
    for visit in visits:
        for walked, direct in (
            (visit.inputs, simulated[visit.layer.name]),
            (visit.float_inputs, floats[visit.layer.name]),
        ):
            assert len(walked) == len(direct) == len(DATA)
            assert all(map(torch.equal, walked, direct))


def inputs_of_layers(model: TorchModel, on: list[str]) -> dict[str, list[torch.Tensor]]:
    """Run the simulation with these quantizers; return what its layers compute with."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(name: str, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        quantizer = module.input_quantizers[0]
        value = arguments[0] if quantizer is None else quantizer(arguments[0])
        seen.setdefault(name, []).append(value.detach().as_subclass(torch.Tensor))

    quantized = model.quantized_model()
    hooks = [
        model._module.get_submodule(found.name).register_forward_pre_hook(
            lambda module, arguments, name=found.name: note(name, module, arguments)
        )
        for found in quantized.layers()
    ]
    with quantized.only(on):
        outputs(model)
    for hook in hooks:
        hook.remove()
    return seen


def test_layers_after_a_changed_one_see_the_change_and_the_float_side_does_not(
    model: TorchModel,
) -> None:
    quantized = calibrate(model)
    before = {visit.layer.name: visit for visit in walk(quantized)}
    after = {}
    for visit in quantized.walk(DATA, quantize_activations=True, check=lambda: None):
        after[visit.layer.name] = visit
        if visit.layer.name == "depthwise.0":
            quantized.set_weight(visit.layer, quantized.weight(visit.layer) * 1.5)
            quantized.set_bias(visit.layer, torch.zeros(8))

    def moved(name: str) -> bool:
        return not torch.equal(before[name].inputs[1], after[name].inputs[1])

    assert [moved(name) for name in LAYERS] == [False, False, True, True]
    for name in LAYERS:
        assert torch.equal(before[name].float_inputs[1], after[name].float_inputs[1])
        assert torch.equal(before[name].float_weight, after[name].float_weight)
    again = {visit.layer.name: visit for visit in walk(quantized)}
    assert torch.equal(again["depthwise.0"].float_weight, before["depthwise.0"].float_weight)
    assert torch.equal(again["head"].float_inputs[0], before["head"].float_inputs[0])


def test_a_walk_stops_between_operators_and_leaves_gradients_to_its_caller(
    model: TorchModel,
) -> None:
    quantized = calibrate(model)
    visits = quantized.walk(DATA, quantize_activations=False, check=lambda: None)
    next(visits)
    assert torch.is_grad_enabled()
    visits.close()
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        list(quantized.walk(DATA, quantize_activations=False, check=check))
    assert checks == 5
    assert sum(not q.is_weight for q in quantized.quantizers()) == 10  # all on again


# --- weights and grids --------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", [pb.GRANULARITY_PER_TENSOR, pb.GRANULARITY_PER_CHANNEL])
@pytest.mark.parametrize("symmetry", [pb.SYMMETRY_SYMMETRIC, pb.SYMMETRY_ASYMMETRIC])
def test_a_grid_rounds_as_the_simulation_does(
    model: TorchModel,
    granularity: pb.Granularity.ValueType,
    symmetry: pb.Symmetry.ValueType,
) -> None:
    config = pb.QuantizationConfig(
        weights=pb.DATA_TYPE_INT4, weight_granularity=granularity, weight_symmetry=symmetry
    )
    quantized = calibrate(model, config)
    for found in quantized.layers():
        grid = quantized.weight_grid(found)
        assert grid is not None
        assert grid.per_channel == (granularity == pb.GRANULARITY_PER_CHANNEL)
        assert grid.symmetric == (symmetry == pb.SYMMETRY_SYMMETRIC)
        quantizer = model._module.get_submodule(found.name).param_quantizers["weight"]
        simulated = quantizer(quantized.weight(found)).as_subclass(torch.Tensor)
        assert torch.equal(grid.round(quantized.weight(found)), simulated)


@pytest.mark.parametrize("symmetry", [pb.SYMMETRY_SYMMETRIC, pb.SYMMETRY_ASYMMETRIC])
def test_a_scale_stands_bit_for_bit_in_simulation_and_files(
    model: TorchModel, tmp_path: Path, symmetry: pb.Symmetry.ValueType
) -> None:
    quantized = calibrate(model, pb.QuantizationConfig(weight_symmetry=symmetry))
    model.encodings()
    stem = layer(quantized, "stem.0")
    grid = quantized.weight_grid(stem)
    assert grid is not None
    scale = grid.scale * torch.linspace(0.5, 1.0, 8).reshape(grid.scale.shape)

    quantized.set_weight_scale(stem, scale)
    quantized.calibrate_activations(lambda: DATA, on_batch=lambda done: None)

    changed = quantized.weight_grid(stem)
    assert changed is not None
    assert torch.equal(changed.scale, scale)
    assert torch.equal(changed.offset, grid.offset)
    encoding = next(e for e in model.encodings() if e.tensor == stem.weight)
    np.testing.assert_allclose(encoding.scales, scale.flatten(), rtol=1e-7)
    model.export_qdq(tmp_path / "q.onnx")
    grids = read_grids(onnx.load(tmp_path / "q.onnx"))
    assert grid_differences(grids, model.encodings()) == []


def test_a_bias_can_be_given_to_a_layer_without_one(tmp_path: Path) -> None:
    model = wrap(Branches(), tmp_path)
    quantized = calibrate(model)
    for name in ("same", "plain"):
        found = layer(quantized, name)
        assert quantized.bias(found) is None
        quantized.set_bias(found, torch.full((found.weight_shape[0],), 0.25))
    snapshot = quantized.snapshot()
    quantized.set_bias(found, torch.zeros(5))
    quantized.restore(snapshot)
    model.export_qdq(tmp_path / "q.onnx")

    simulated, ran = outputs(model), _run_file(tmp_path / "q.onnx")
    assert sqnr_db(simulated, ran) > 35
    visits = {visit.layer.name: visit for visit in walk(quantized)}
    assert visits["same"].float_bias is None
    assert torch.equal(quantized.bias(found), torch.full((5,), 0.25))


def _run_file(path: Path) -> np.ndarray:
    session = exact_session(path)
    return np.concatenate([session.run(None, dict(batch))[0] for batch in DATA])


def test_a_bias_that_would_overflow_gets_a_coarser_weight_grid(model: TorchModel) -> None:
    quantized = calibrate(model, pb.QuantizationConfig(weights=pb.DATA_TYPE_INT16))
    head = layer(quantized, "head")
    before = quantized.weight_grid(head)
    quantized.set_bias(head, torch.full((10,), 1e6))
    after = quantized.weight_grid(head)

    assert before is not None
    assert after is not None
    assert bool((after.scale > before.scale).all())


# --- quantizers ---------------------------------------------------------------------------------


def test_quantizers_belong_to_what_targets_compute_as_one(model: TorchModel) -> None:
    quantized = calibrate(model)
    found = [(q.layer, q.op, q.is_weight, q.bits) for q in quantized.quantizers()]

    assert found[:5] == [
        ("input", "", False, 8),
        ("stem.0", "Conv", True, 8),
        ("stem.0", "Conv", False, 8),  # stands after the ReLU6
        ("depthwise.0", "Conv", True, 8),
        ("depthwise.0", "Conv", False, 8),
    ]
    assert len({q.name for q in quantized.quantizers()}) == len(found) == 14


def test_quantizers_switched_off_do_nothing_and_come_back(model: TorchModel) -> None:
    expected = outputs(model)
    quantized = calibrate(model)
    simulated, names = outputs(model), [q.name for q in quantized.quantizers()]
    with quantized.only([]):
        assert quantized.quantizers() == ()
        assert sqnr_db(expected, outputs(model)) > 100
    with quantized.only(names[:3]):
        assert [q.name for q in quantized.quantizers()] == names[:3]
        assert sqnr_db(simulated, outputs(model)) < 60
    with pytest.raises(Cancelled), quantized.only([]):
        raise Cancelled

    np.testing.assert_array_equal(outputs(model), simulated)


def test_types_change_and_come_back(model: TorchModel, tmp_path: Path) -> None:
    expected = outputs(model)
    quantized = calibrate(model, scheme=pb.RANGE_SCHEME_SQNR)
    before, snapshot = outputs(model), quantized.snapshot()
    everything = [q.name for q in quantized.quantizers()]
    quantized.set_types(everything, 16)
    quantized.calibrate_activations(lambda: DATA, on_batch=lambda done: None)

    assert {q.bits for q in quantized.quantizers()} == {16}
    assert sqnr_db(expected, outputs(model)) > 70
    softmax = next(e for e in model.encodings() if e.tensor.startswith("/gate/"))
    assert softmax.scales == (2.0**-16,)
    for _ in range(2):
        quantized.restore(snapshot)
        np.testing.assert_array_equal(outputs(model), before)
        quantized.set_weight(layer(quantized, "head"), torch.zeros(10, 8))
    quantized.restore(snapshot)
    assert {e.bits for e in model.encodings()} <= {8, 32}


def test_weights_get_the_ranges_of_the_calibration_scheme(prepared: TorchModel) -> None:
    """Set to 4 bits later, or calibrated with them at once."""
    for scheme in (pb.RANGE_SCHEME_MIN_MAX, pb.RANGE_SCHEME_SQNR):
        direct = calibrate(
            prepared.copy(), pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4), scheme=scheme
        )
        later = calibrate(prepared.copy(), scheme=scheme)
        later.set_types([q.name for q in later.quantizers() if q.is_weight], 4)
        for found in later.layers():
            first, second = direct.weight_grid(found), later.weight_grid(found)
            assert first is not None
            assert second is not None
            # AIMET's check for overflowing biases moves scales by a rounding error.
            torch.testing.assert_close(first.scale, second.scale, rtol=1e-6, atol=0)


def test_ranges_of_activations_follow_new_data(model: TorchModel) -> None:
    quantized = calibrate(model)
    before = {e.tensor: e.scales for e in model.encodings()}
    doubled = [{"input": batch["input"] * 2} for batch in DATA]
    quantized.calibrate_activations(lambda: doubled, on_batch=lambda done: None)
    after = {e.tensor: e.scales for e in model.encodings()}

    np.testing.assert_allclose(after["input"], np.multiply(before["input"], 2), rtol=1e-6)
    assert after["stem.0.weight"] == before["stem.0.weight"]
    with pytest.raises(FailedPrecondition, match="no calibration sample"):
        quantized.calibrate_activations(list, on_batch=lambda done: None)


# --- overrides ----------------------------------------------------------------------------------


def select(*layers: str, op_types: tuple[str, ...] = ()) -> pb.LayerSelector:
    return pb.LayerSelector(layers=layers, op_types=op_types)


def test_overrides_type_and_free_what_they_select(model: TorchModel, tmp_path: Path) -> None:
    config = pb.QuantizationConfig(
        overrides=[
            pb.LayerOverride(select=select("*.0"), weights=pb.DATA_TYPE_INT4),
            pb.LayerOverride(select=select("depthwise.2"), activations=pb.DATA_TYPE_INT16),
            pb.LayerOverride(select=select("point*"), weights=pb.DATA_TYPE_INT16),
            pb.LayerOverride(select=select(op_types=("Gemm", "Softmax")), leave_float=True),
        ]
    )
    quantized = calibrate(model, config)
    bits = {(q.layer, q.is_weight): q.bits for q in quantized.quantizers()}

    assert bits["stem.0", True] == 4
    assert bits["point.0", True] == 16
    assert (bits["depthwise.0", True], bits["depthwise.0", False]) == (4, 16)
    assert bits["stem.0", False] == bits["point.0", False] == 8
    assert not {"head", "softmax"} & {name for name, _ in bits}
    assert quantized.weight_grid(layer(quantized, "head")) is None
    model.export_qdq(tmp_path / "q.onnx")
    assert sqnr_db(outputs(model), _run_file(tmp_path / "q.onnx")) > 35


@pytest.mark.parametrize(
    "selector", [select("nothing*"), select("stem.0", op_types=("Gemm",)), pb.LayerSelector()]
)
def test_a_selector_that_finds_nothing_is_refused(
    model: TorchModel, selector: pb.LayerSelector
) -> None:
    overrides = [
        pb.LayerOverride(select=select("stem.0"), leave_float=True),
        pb.LayerOverride(select=selector, leave_float=True),
    ]
    with pytest.raises(InvalidArgument) as caught:
        calibrate(model, pb.QuantizationConfig(overrides=overrides))

    assert caught.value.reason == "SELECTOR_MATCHES_NOTHING"
    assert caught.value.field == "plan.quantization.overrides[1].select"
    assert "stem.0" in caught.value.message


@pytest.mark.parametrize(
    ("config", "between"),
    [
        (pb.QuantizationConfig(), 0),
        (pb.QuantizationConfig(fuse_activations=False), 1),
        (pb.QuantizationConfig(hardware_config="htp_v73"), 1),
        (pb.QuantizationConfig(hardware_config="htp_v73", fuse_activations=True), 0),
    ],
)
def test_no_quantizer_stands_inside_a_fused_pair(
    model: TorchModel, config: pb.QuantizationConfig, between: int
) -> None:
    calibrate(model, config)
    pairs = ("stem.0", "depthwise.0")
    found = [model._module.get_submodule(name).output_quantizers[0] for name in pairs]

    assert sum(quantizer is not None for quantizer in found) == between


# --- architectures ------------------------------------------------------------------------------


def test_a_walk_through_mobilenet(tmp_path: Path) -> None:
    weights = save_weights("mobilenet_v2", tmp_path / "w.safetensors")
    model = open_model(
        architecture_spec("mobilenet_v2", 32), weights, scratch=tmp_path, device="cpu", seed=0
    )
    model.fold_batch_norms()
    reference = model.copy()
    data = batches(1, 4)
    model.calibrate(
        pb.QuantizationConfig(), pb.Calibrate(), lambda: data, on_batch=lambda done: None
    )
    quantized = model.quantized_model()
    visits = list(quantized.walk(data, quantize_activations=True, check=lambda: None))

    assert len(visits) == len(quantized.layers()) == 53
    assert all(found.weight and found.output for found in quantized.layers())
    assert len(quantized.moments()) == 52
    name = model.output_names[0]
    np.testing.assert_allclose(
        visits[-1].float_output(0).numpy(), reference.predict(data[0])[name], rtol=0, atol=1e-5
    )
    last = visits[-1].layer
    grid, bias = quantized.weight_grid(last), quantized.bias(last)
    assert grid is not None
    rounded = last.kernel.apply(visits[-1].inputs[0], grid.round(quantized.weight(last)), bias)
    assert sqnr_db(model.predict(data[0])[name], rounded.numpy()) > 35  # but for its own quantizer


class Joined(nn.Module):
    """Two branches of unlike ranges, whose quantizers AIMET ties to that of their Concat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.wide, self.narrow = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.wide.weight.mul_(20)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.wide(x), self.narrow(x)], 1))


def test_mean_ranges_of_tied_quantizers_are_those_of_what_is_joined(tmp_path: Path) -> None:
    module = Joined()
    model = wrap(module, tmp_path)
    calibrate(model, scheme=pb.RANGE_SCHEME_MEAN_MIN_MAX, reach=0.0)
    outputs = [module.wide(torch.from_numpy(batch["input"])) for batch in DATA]
    wide = torch.cat(outputs).detach().flatten(1)
    ranges = {e.tensor: e.bounds for e in model.encodings() if not e.is_weight}
    low, high = next(found for name, found in ranges.items() if "Concat" in name)

    assert low == pytest.approx(float(wide.amin(1).mean()), rel=0.02)
    assert high == pytest.approx(float(wide.amax(1).mean()), rel=0.02)


def test_mean_ranges_of_samples_hold_zero(tmp_path: Path) -> None:
    model = wrap(Joined(), tmp_path)
    data = [{"input": values["input"] + shift} for values, shift in zip(DATA, (0, 9), strict=True)]
    model.calibrate(
        pb.QuantizationConfig(),
        pb.Calibrate(scheme=pb.RANGE_SCHEME_MEAN_MIN_MAX, reach=0.0),
        lambda: data,
        on_batch=lambda _: None,
    )
    lows = np.concatenate([batch["input"] for batch in data]).min(axis=(1, 2, 3))
    low, _ = next(e.bounds for e in model.encodings() if e.tensor == "input")

    assert lows.max() > 0
    assert low == pytest.approx(np.minimum(lows, 0).mean(), rel=0.05)
