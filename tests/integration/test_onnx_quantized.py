"""The primitives of quantized models on the real aimet-onnx, against its own graphs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lighten import v1 as pb
from lighten_service.jobs.resolve import with_defaults

pytest.importorskip("aimet_onnx")

from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.worker.context import Cancelled
from lighten_service.worker.engines.onnx_engine import OnnxModel, open_onnx_model
from lighten_service.worker.graphs.save import load_with_external
from lighten_service.worker.model import Batch
from lighten_service.worker.quantized import Layer, QuantizedModel, Visit
from lighten_service.worker.runtime import GraphSession
from tests.support import onnx_models as zoo
from tests.support.exact import exact
from tests.support.small_models import sqnr_db

INT8 = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT8, activations=pb.DATA_TYPE_INT8)
MIN_MAX = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
Opener = Callable[..., OnnxModel]


@pytest.fixture
def quantize(tmp_path: Path) -> Iterator[Opener]:
    opened: list[OnnxModel] = []

    def open_and_calibrate(
        proto: onnx.ModelProto,
        batch: Batch,
        quantization: pb.QuantizationConfig = INT8,
        parameters: pb.Calibrate = MIN_MAX,
    ) -> OnnxModel:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        onnx.save(proto, str(folder / "model.onnx"))
        model = open_onnx_model(
            pb.JobSpec(), folder / "model.onnx", scratch=folder, device="cpu", seed=1
        )
        opened.append(model)
        model.fold_batch_norms()
        model.calibrate(quantization, parameters, lambda: [batch], on_batch=lambda _: None)
        return model

    yield open_and_calibrate
    for model in opened:
        model.close()


def walk(
    model: OnnxModel, *batches: Batch, quantize_activations: bool = True
) -> Iterator[tuple[Layer, Visit]]:
    visits = model.quantized_model().walk(
        batches, quantize_activations=quantize_activations, check=lambda: None
    )
    for visit in visits:
        yield visit.layer, visit


def tensors(model: onnx.ModelProto, names: list[str], batch: Batch) -> dict[str, np.ndarray]:
    """Run a float graph for tensors inside it."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = GraphSession(opened)
    return dict(zip(names, session._session.run(None, dict(batch)), strict=True))


def simulated(model: OnnxModel, names: list[str], batch: Batch) -> dict[str, np.ndarray]:
    """Run AIMET's graph for tensors inside it."""
    simulation = model._simulation
    assert simulation is not None
    opened = onnx.ModelProto()
    opened.CopyFrom(simulation.graph)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, simulation.open_piece(opened).run(None, dict(batch)), strict=True))


def layer(model: OnnxModel, output: str) -> Layer:
    return next(found for found in model.quantized_model().layers() if found.output == output)


def bits(quantized: QuantizedModel) -> dict[str, int]:
    return {quantizer.name: quantizer.bits for quantizer in quantized.quantizers()}


NETWORKS = [
    pytest.param(zoo.layer_kinds(), zoo.images(4, size=13), id="layer-kinds"),
    pytest.param(zoo.layer_kinds(batch=4), zoo.images(4, size=13), id="fixed-batch"),
    pytest.param(zoo.mobile_net(9), zoo.images(4), id="opset9"),
    pytest.param(zoo.attention(), zoo.tokens(4), id="two-inputs-two-outputs"),
]


@pytest.mark.parametrize(("proto", "batch"), NETWORKS)
def test_layers_compute_what_the_float_graph_does(
    proto: onnx.ModelProto, batch: Batch, quantize: Opener
) -> None:
    model = quantize(proto, batch)
    visits = list(walk(model, batch))
    expected = tensors(model.graph(), [found.output for found, _ in visits], batch)

    assert [found for found, _ in visits] == list(model.quantized_model().layers())
    for found, visit in visits:
        np.testing.assert_allclose(
            visit.float_output(0).numpy(), expected[found.output], rtol=1e-4, atol=1e-4
        )
        assert tuple(visit.float_weight.shape) == found.weight_shape


@pytest.mark.parametrize("hardware", ["", "htp_v73"])
@pytest.mark.parametrize(("proto", "batch"), NETWORKS)
def test_walking_gives_what_the_simulation_does(
    proto: onnx.ModelProto, batch: Batch, hardware: str, quantize: Opener
) -> None:
    model = quantize(proto, batch, pb.QuantizationConfig(hardware_config=hardware))
    graph = model._simulation.graph.graph  # type: ignore[union-attr]
    weights = {f"{found.weight}_qdq": found.name for found in model.quantized_model().layers()}
    reads = {
        weights[node.input[1]]: node.input[0]
        for node in graph.node
        if len(node.input) > 1 and node.input[1] in weights
    }
    expected = simulated(model, sorted(set(reads.values())), batch)

    for found, visit in walk(model, batch):
        assert sqnr_db(expected[reads[found.name]], visit.inputs[0].numpy()) > 60


def test_all_kinds_of_layers_are_found(quantize: Opener) -> None:
    layers = quantize(zoo.layer_kinds(), zoo.images(4, size=13)).quantized_model().layers()

    assert [(found.op, found.output) for found in layers] == [
        ("Conv", "same"),
        ("ConvTranspose", "up"),
        ("Conv", "depthwise"),
        ("MatMul", "bare"),
        ("MatMul", "added"),
        ("Gemm", "logits"),
    ]
    relu = (0.0, np.inf)
    assert [found.activation for found in layers] == [relu, relu, (0.0, 6.0), None, relu, None]


def test_scaled_and_transposed_products_are_no_layers(quantize: Opener) -> None:
    b = zoo.Builder(17)
    x = b.add("Gemm", ["rows", b.weight("scaled", 4, 4)], "x", alpha=0.5)
    b.add("Gemm", [x, b.weight("plain", 4, 3)], "y")
    proto = b.model([zoo.tensor("rows", ["N", 4])], [zoo.tensor("y", ["N", 3])])
    rows = {"rows": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)}

    assert [found.weight for found, _ in walk(quantize(proto, rows), rows)] == ["plain"]


def test_a_fixed_batch_is_walked_in_portions(quantize: Opener) -> None:
    model = quantize(zoo.layer_kinds(batch=2), zoo.images(4, size=13))
    free = quantize(zoo.layer_kinds(), zoo.images(4, size=13))
    samples = zoo.images(3, size=13)

    for (_, visit), (_, whole) in zip(walk(model, samples), walk(free, samples), strict=True):
        joined = torch.cat(list(visit.inputs))
        assert [len(part) for part in visit.inputs] == [2, 2]
        np.testing.assert_allclose(joined[:3], whole.inputs[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(joined[3], joined[2])


def test_later_layers_see_what_was_changed(quantize: Opener) -> None:
    batch = zoo.images(4)
    model = quantize(zoo.mobile_net(), batch)
    before = {found.name: visit for found, visit in walk(model, batch)}
    quantized = model.quantized_model()
    changed = {}
    for found, visit in walk(model, batch):
        if found.op == "Conv":
            quantized.set_weight(found, quantized.weight(found) * 0.5)
            quantized.set_bias(found, torch.full((found.weight_shape[0],), 0.1))
        changed[found.name] = visit
    again = {found.name: visit for found, visit in walk(model, batch)}

    for name, visit in changed.items():
        np.testing.assert_array_equal(visit.inputs[0], again[name].inputs[0])
        # The float side stays as it was at calibration.
        np.testing.assert_array_equal(visit.float_inputs[0], before[name].float_inputs[0])
        np.testing.assert_array_equal(again[name].float_weight, before[name].float_weight)
    assert not torch.equal(changed["Conv_depthwise"].inputs[0], before["Conv_depthwise"].inputs[0])


def test_activations_in_float_leave_the_error_of_weights(quantize: Opener) -> None:
    batch = zoo.images(4)
    model = quantize(zoo.mobile_net(), batch)
    (_, first), (_, second), *_ = walk(model, batch, quantize_activations=False)
    quantized = model.quantized_model()
    weights = [q.name for q in quantized.quantizers() if q.is_weight]
    with quantized.only(weights):
        expected = simulated(model, ["act_updated"], batch)["act_updated"]

    np.testing.assert_array_equal(first.inputs[0], batch["image"])
    np.testing.assert_allclose(second.inputs[0], expected, rtol=1e-5, atol=1e-5)


def test_branches_are_walked_with_what_they_read_from_outside(quantize: Opener) -> None:
    batch = zoo.images(4)
    model = quantize(zoo.branches(), batch)
    (first, _), (last, visit) = walk(model, batch)
    expected = tensors(model.graph(), ["last"], batch)["last"]

    assert (first.output, last.output) == ("first", "last")
    actual = visit.float_output(0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_walk_stops_when_asked(quantize: Opener) -> None:
    def check() -> None:
        raise Cancelled

    model = quantize(zoo.mobile_net(), zoo.images(4))
    visits = model.quantized_model().walk([zoo.images(4)], quantize_activations=True, check=check)
    with pytest.raises(Cancelled):
        list(visits)


@pytest.mark.parametrize("granularity", [pb.GRANULARITY_PER_CHANNEL, pb.GRANULARITY_PER_TENSOR])
@pytest.mark.parametrize("symmetry", [pb.SYMMETRY_SYMMETRIC, pb.SYMMETRY_ASYMMETRIC])
def test_weight_grids_are_those_of_aimet(
    granularity: pb.Granularity.ValueType, symmetry: pb.Symmetry.ValueType, quantize: Opener
) -> None:
    config = pb.QuantizationConfig(weight_granularity=granularity, weight_symmetry=symmetry)
    batch = zoo.images(4, size=13)
    model = quantize(zoo.layer_kinds(), batch, config)
    quantized = model.quantized_model()
    for found in quantized.layers():
        grid = quantized.weight_grid(found)
        assert grid is not None
        rounded = simulated(model, [f"{found.weight}_qdq"], batch)[f"{found.weight}_qdq"]
        expected = rounded.T if found.op in ("MatMul", "Gemm") else rounded
        np.testing.assert_allclose(grid.round(quantized.weight(found)), expected, rtol=1e-6)
        # AIMET gives transposed convolutions in groups one scale.
        per_channel = granularity == pb.GRANULARITY_PER_CHANNEL and found.op != "ConvTranspose"
        assert grid.per_channel == per_channel
        assert grid.symmetric == (symmetry == pb.SYMMETRY_SYMMETRIC)


def test_scales_stay_what_they_were_set_to(quantize: Opener) -> None:
    batch = zoo.images(4, size=13)
    model = quantize(zoo.layer_kinds(), batch)
    quantized = model.quantized_model()
    for found in quantized.layers():
        grid = quantized.weight_grid(found)
        assert grid is not None
        quantized.set_weight_scale(found, grid.scale * 0.75)
        quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)
        new = quantized.weight_grid(found)
        assert new is not None
        torch.testing.assert_close(new.scale, grid.scale * 0.75, rtol=0, atol=0)
        encoding = next(e for e in model.encodings() if e.tensor == found.weight)
        np.testing.assert_allclose(encoding.scales, new.scale.flatten(), rtol=1e-6)
        values = simulated(model, [f"{found.weight}_qdq"], batch)[f"{found.weight}_qdq"]
        expected = new.round(quantized.weight(found)).numpy()
        shown = expected.T if found.op in ("MatMul", "Gemm") else expected
        np.testing.assert_allclose(values, shown, rtol=1e-6)


def test_changes_reach_every_output(quantize: Opener, tmp_path: Path) -> None:
    batch = zoo.images(4, size=13)
    model = quantize(zoo.layer_kinds(), batch)
    quantized = model.quantized_model()
    before = model.encodings()
    rng = torch.Generator().manual_seed(0)
    wanted = {}
    for found in quantized.layers():
        bias = torch.randn(_channels(found), generator=rng) * 0.1
        wanted[found.name] = (quantized.weight(found) * 0.9, bias)
        quantized.set_weight(found, wanted[found.name][0])
        quantized.set_bias(found, bias)
    quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)

    for found in quantized.layers():
        torch.testing.assert_close(quantized.weight(found), wanted[found.name][0], rtol=0, atol=0)
        new = quantized.bias(found)
        assert new is not None
        torch.testing.assert_close(new, wanted[found.name][1], rtol=0, atol=0)
    model.export_float(tmp_path / "f.onnx")
    model.export_qdq(tmp_path / "q.onnx")
    given = model.predict(batch)
    expected = GraphSession(tmp_path / "f.onnx").predict(batch)
    real = GraphSession(exact(tmp_path / "q.onnx")).predict(batch)
    graph = load_with_external(tmp_path / "q.onnx").graph
    integers = {
        t.name
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT32 and t.name.endswith("_q")
    }
    for name in given:
        assert sqnr_db(expected[name], given[name]) > 20
        assert sqnr_db(given[name], real[name]) > 30
    assert len(integers) == 6
    assert model.encodings() != before


@pytest.mark.parametrize("scheme", [pb.RANGE_SCHEME_MIN_MAX, pb.RANGE_SCHEME_PERCENTILE])
def test_calibrating_activations_again_is_calibrating(
    scheme: pb.RangeScheme.ValueType, quantize: Opener
) -> None:
    batch, other = zoo.images(8), {"image": zoo.images(8, seed=6)["image"] * 3}
    parameters = with_defaults(pb.Calibrate(scheme=scheme))
    model = quantize(zoo.mobile_net(), batch, INT8, parameters)
    fresh = quantize(zoo.mobile_net(), other, INT8, parameters)
    first = model.encodings()
    seen = []
    quantized = model.quantized_model()
    quantized.calibrate_activations(lambda: [other], on_batch=seen.append)

    assert seen == [1]
    assert model.encodings() == fresh.encodings() != first
    with pytest.raises(FailedPrecondition) as failure:
        quantized.calibrate_activations(list, on_batch=seen.append)
    assert failure.value.reason == "EMPTY_CALIBRATION_DATA"


@pytest.mark.parametrize(
    "scheme", [pb.RANGE_SCHEME_MIN_MAX, pb.RANGE_SCHEME_PERCENTILE, pb.RANGE_SCHEME_SQNR]
)
def test_widths_set_later_are_as_if_set_before(
    scheme: pb.RangeScheme.ValueType, quantize: Opener
) -> None:
    batch = zoo.images(8)
    parameters = with_defaults(pb.Calibrate(scheme=scheme))
    model = quantize(zoo.mobile_net(), batch, INT8, parameters)
    mixed = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4, activations=pb.DATA_TYPE_INT16)
    fresh = quantize(zoo.mobile_net(), batch, mixed, parameters)
    quantized = model.quantized_model()
    weights = [q.name for q in quantized.quantizers() if q.is_weight]
    quantized.set_types(weights, 4)
    quantized.set_types([name for name in bits(quantized) if name not in weights], 16)
    quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)

    assert {name: 4 if name in weights else 16 for name in bits(quantized)} == bits(quantized)
    for now, expected in zip(model.encodings(), fresh.encodings(), strict=True):
        assert (now.tensor, now.bits, now.offsets) == (
            expected.tensor,
            expected.bits,
            expected.offsets,
        )
        np.testing.assert_allclose(now.scales, expected.scales, rtol=1e-5)


def test_restoring_brings_everything_back(quantize: Opener) -> None:
    batch = zoo.images(4, size=13)
    model = quantize(zoo.layer_kinds(), batch)
    quantized = model.quantized_model()
    outputs, encodings = model.predict(batch), model.encodings()
    snapshot = quantized.snapshot()
    for _ in range(2):
        for found in quantized.layers():
            quantized.set_weight(found, quantized.weight(found) * 0.5)
            bias = quantized.bias(found)
            quantized.set_bias(found, torch.ones(_channels(found)) if bias is None else bias + 1)
        quantized.set_types([q.name for q in quantized.quantizers()], 16)
        quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)
        assert sqnr_db(outputs["logits"], model.predict(batch)["logits"]) < 20
        quantized.restore(snapshot)

        restored = model.predict(batch)
        for name, expected in outputs.items():
            np.testing.assert_array_equal(restored[name], expected)
        assert set(encodings) <= set(model.encodings())


def _channels(found: Layer) -> int:
    groups = found.kernel.groups if found.kernel.transposed else 1
    return found.weight_shape[found.kernel.channel_axis] * groups


def test_only_some_quantizers(quantize: Opener) -> None:
    batch = zoo.images(4)
    model = quantize(zoo.mobile_net(), batch)
    quantized = model.quantized_model()
    everything = model.predict(batch)["logits"]
    expected = GraphSession(model.graph()).predict(batch)["logits"]
    with quantized.only([]):
        assert quantized.quantizers() == ()
        np.testing.assert_allclose(model.predict(batch)["logits"], expected, atol=1e-5)
    with quantized.only(["head.weight"]):
        assert [q.layer for q in quantized.quantizers()] == ["Gemm_logits"]
        assert sqnr_db(expected, model.predict(batch)["logits"]) > sqnr_db(expected, everything)
    np.testing.assert_array_equal(model.predict(batch)["logits"], everything)


def test_quantizers_belong_to_layers_in_execution_order(quantize: Opener) -> None:
    quantized = quantize(zoo.mobile_net(), zoo.images(4)).quantized_model()

    assert [(q.name, q.layer, q.op) for q in quantized.quantizers()] == [
        ("image", "image", ""),
        ("stem.weight", "Conv_stem", "Conv"),
        ("act", "Conv_stem", "Conv"),
        ("depthwise.weight", "Conv_depthwise", "Conv"),
        ("depthwise_act", "Conv_depthwise", "Conv"),
        ("point.weight", "Conv_point", "Conv"),
        ("point_act", "Conv_point", "Conv"),
        ("pool", "GlobalAveragePool_pool", "GlobalAveragePool"),
        ("head.weight", "Gemm_logits", "Gemm"),
        ("logits", "Gemm_logits", "Gemm"),
    ]


def test_a_shared_weight_changes_in_both_layers(quantize: Opener) -> None:
    batch = zoo.images(4, size=12)
    model = quantize(zoo.shared_weight(), batch)
    quantized = model.quantized_model()
    once, again, _ = quantized.layers()
    quantized.set_weight(once, quantized.weight(once) * 0.5)

    assert once.weight == again.weight == "shared.weight"
    assert len(list(walk(model, batch))) == 3
    torch.testing.assert_close(quantized.weight(again), quantized.weight(once), rtol=0, atol=0)
    expected = GraphSession(model.graph()).predict(batch)["last"]
    assert sqnr_db(expected, model.predict(batch)["last"]) > 20


def _override(*layers: str, op_types: tuple[str, ...] = (), **values: object) -> pb.LayerOverride:
    select = pb.LayerSelector(layers=layers, op_types=op_types)
    return pb.LayerOverride(select=select, **values)  # type: ignore[arg-type]


def test_overrides_choose_types_of_operators(quantize: Opener) -> None:
    config = pb.QuantizationConfig(
        overrides=[
            _override(op_types=("Conv",), weights=pb.DATA_TYPE_INT16),
            _override("Conv_d*", weights=pb.DATA_TYPE_INT4, activations=pb.DATA_TYPE_INT16),
            _override("Gemm_*", leave_float=True),
        ]
    )
    found = bits(quantize(zoo.mobile_net(), zoo.images(4), config).quantized_model())

    assert found == {
        "image": 8,
        "stem.weight": 16,
        "act": 8,
        "depthwise.weight": 4,
        "depthwise_act": 16,
        "point.weight": 16,
        "point_act": 8,
        "pool": 8,
    }


def test_an_override_parts_tied_quantizers(quantize: Opener) -> None:
    """AIMET gives the inputs and the output of a Concat one grid."""
    b = zoo.Builder(17)
    ends = [b.conv("image", name, (3, 4)) for name in ("left", "right")]
    b.conv(b.add("Concat", ends, "both", axis=1), "last", (8, 4))
    shapes = [zoo.tensor("image", ["N", 3, 16, 16])], [zoo.tensor("last", ["N", 4, 16, 16])]
    batch = zoo.images(4)
    tied = quantize(b.model(*shapes), batch)
    config = pb.QuantizationConfig(overrides=[_override("Conv_left", leave_float=True)])
    parted = quantize(b.model(*shapes), batch, config)
    assert tied._simulation is not None
    assert parted._simulation is not None

    grids = tied._simulation.quantizers
    assert grids["left"] is grids["right"]
    assert not parted._simulation.quantizers["left"].enabled
    assert parted._simulation.quantizers["right"].enabled
    assert parted.predict(batch)["last"].shape == (4, 4, 16, 16)


def test_an_override_may_name_the_activation_of_a_layer(quantize: Opener) -> None:
    config = pb.QuantizationConfig(
        overrides=[_override(op_types=("Relu",), activations=pb.DATA_TYPE_INT16)]
    )
    found = bits(quantize(zoo.mobile_net(), zoo.images(4), config).quantized_model())

    assert [name for name, width in found.items() if width == 16] == ["point_act"]


def test_an_override_for_nothing_is_refused(quantize: Opener) -> None:
    config = pb.QuantizationConfig(
        overrides=[
            _override(op_types=("Conv",), leave_float=True),
            _override("no_such_layer", leave_float=True),
        ]
    )
    with pytest.raises(InvalidArgument) as failure:
        quantize(zoo.mobile_net(), zoo.images(4), config)
    assert failure.value.reason == "SELECTOR_MATCHES_NOTHING"
    assert failure.value.field == "plan.quantization.overrides[1].select"


def test_activations_are_fused_unless_asked_otherwise(quantize: Opener) -> None:
    batch = zoo.images(4, size=13)
    fused = bits(quantize(zoo.layer_kinds(), batch).quantized_model())
    apart = bits(
        quantize(
            zoo.layer_kinds(), batch, pb.QuantizationConfig(fuse_activations=False)
        ).quantized_model()
    )

    assert not {"same", "up", "depthwise", "added"} & set(fused)
    assert {"same_act", "up_act", "depthwise_act", "added_act"} <= set(fused)
    # AIMET merges other layers with their activations, but not depthwise convolutions.
    assert "depthwise" in apart


def test_moments_follow_equalization(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(zoo.relu_net(), str(file))
    model = open_onnx_model(pb.JobSpec(), file, scratch=tmp_path, device="cpu", seed=1)
    gamma, beta = (
        onnx.numpy_helper.to_array(t)
        for name in ("bn.gamma", "bn.beta")
        for t in model.graph().graph.initializer
        if t.name == name
    )
    before = model.copy()
    before.fold_batch_norms()
    model.equalize()
    scales = _largest(before, "first.weight") / _largest(model, "first.weight")
    batch = zoo.images(4, size=12)
    model.calibrate(INT8, MIN_MAX, lambda: [batch], on_batch=lambda _: None)
    moments = model.quantized_model().moments()

    assert set(moments) == {"Conv_first"}
    np.testing.assert_allclose(moments["Conv_first"].mean, beta / scales, rtol=1e-4)
    np.testing.assert_allclose(moments["Conv_first"].std, np.abs(gamma) / scales, rtol=1e-4)
    model.close()
    before.close()


def _largest(model: OnnxModel, name: str) -> np.ndarray:
    tensor = next(t for t in model.graph().graph.initializer if t.name == name)
    return np.abs(onnx.numpy_helper.to_array(tensor)).max(axis=(1, 2, 3))


MEAN = pb.Calibrate(scheme=pb.RANGE_SCHEME_MEAN_MIN_MAX, reach=0.25)


@pytest.mark.parametrize("size", ["N", 3], ids=["open-batch", "fixed-batch"])
def test_ranges_lie_around_the_mean_of_samples(size: int | str, quantize: Opener) -> None:
    batch = zoo.images(5, size=13)
    model = quantize(zoo.layer_kinds(batch=size), batch, parameters=MEAN)
    name, values = next(iter(batch.items()))
    low, high = next(e for e in model.encodings() if e.tensor == name).bounds
    lows, highs = values.reshape(5, -1).min(1), values.reshape(5, -1).max(1)
    step = (high - low) / 255

    assert low == pytest.approx(lows.mean() + 0.25 * (lows.min() - lows.mean()), abs=2 * step)
    assert high == pytest.approx(highs.mean() + 0.25 * (highs.max() - highs.mean()), abs=2 * step)
    before = model.encodings()
    model.quantized_model().calibrate_activations(lambda: [batch], on_batch=lambda _: None)
    assert model.encodings() == before


def test_the_grid_between_0_and_1_follows_the_width(quantize: Opener) -> None:
    batch = zoo.tokens(4)
    wide = pb.LayerOverride(
        select=pb.LayerSelector(op_types=["Softmax"]), activations=pb.DATA_TYPE_INT16
    )
    chosen = quantize(zoo.attention(), batch, pb.QuantizationConfig(overrides=[wide]))
    model = quantize(zoo.attention(), batch)
    quantized = model.quantized_model()
    name = next(q.name for q in quantized.quantizers() if q.op == "Softmax")
    before = quantized.snapshot()

    def bounds(opened: OnnxModel) -> tuple[float, float]:
        return next(e.bounds for e in opened.encodings() if e.tensor == name)

    assert bounds(chosen) == (0, 1 - 2**-16)
    assert bounds(model) == (0, 1 - 2**-8)
    quantized.set_types([name], 16)
    quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)
    assert bounds(model) == (0, 1 - 2**-16)
    quantized.restore(before)
    quantized.calibrate_activations(lambda: [batch], on_batch=lambda _: None)
    assert bounds(model) == (0, 1 - 2**-8)
