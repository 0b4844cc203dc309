"""Activation equalization on real models of both engines."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lighten import v1 as pb

pytest.importorskip("aimet_torch")
pytest.importorskip("aimet_onnx")

from lighten_service.techniques import NotApplicable
from lighten_service.worker.graphs.channels import channel_sets
from lighten_service.worker.rescale import ChannelScales
from tests.support import onnx_models as zoo
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import (
    CHANNEL,
    ENGINES,
    TENSOR,
    Bench,
    InMemory,
    open_engine,
    open_graph,
)

Make = Callable[..., Bench]


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def bench(
        *, relu6: bool = False, samples: int = 4, quantization: pb.QuantizationConfig = CHANNEL
    ) -> Bench:
        scratch = tmp_path / str(len(list(tmp_path.iterdir())))
        scratch.mkdir()
        model = open_engine(request.param, DepthwiseNet(relu6=relu6), scratch)
        data, others = InMemory(pictures(samples)), InMemory(pictures(4, seed=1))
        return Bench(model, data, others, scratch, quantization)

    return bench


def unbalance(bench: Bench) -> None:
    """Make the channels of all activations but the output differ by factors up to 50, where the
    function stays."""
    bench.run(fold_batch_norms=pb.FoldBatchNorms())
    copy = bench.model.copy()
    one = InMemory(pictures(1))
    copy.calibrate(CHANNEL, pb.Calibrate(), lambda: one.data, on_batch=lambda _: None)
    layers = copy.quantized_model().layers()
    read = {layer.name: torch.ones(layer.input_channels) for layer in layers}
    written = {layer.name: torch.ones(layer.output_channels) for layer in layers}
    torch.manual_seed(0)
    for found in channel_sets(copy.graph(), layers):
        if found.obstacle:
            continue
        scales = torch.exp(-torch.rand(found.channels) * np.log(50))
        read |= dict.fromkeys(found.readers, scales)
        written |= dict.fromkeys(found.writers, scales)
    bench.model.rescale({name: ChannelScales(read[name], written[name]) for name in read})


def equalize(**parameters: object) -> dict[str, pb.ActivationEqualization]:
    return {"activation_equalization": pb.ActivationEqualization(**parameters)}


def spread(ranges: list[list[float]]) -> float:
    largest = np.abs(ranges).max(1)
    return float(largest.max() / largest[largest > 0].min())


def test_rescaled_layers_compute_the_same(make: Make) -> None:
    bench = make()

    unbalance(bench)

    assert bench.sqnr_db() > 80


def test_it_brings_channels_together_and_keeps_the_function(make: Make) -> None:
    bench = make()

    findings = bench.run(**equalize(strength=1.0))

    assert findings.values["folded_batch_norms"] == 7
    assert findings.values["scaled_sets"] == 5
    assert findings.values["float_sqnr_db"] > 80
    assert bench.sqnr_db() > 80
    assert list(findings.data["left"].values()) == ["it is an output of the model"]  # type: ignore[attr-defined]
    for row in findings.data["activations"]:  # type: ignore[attr-defined]
        assert spread(row["after"]) < 1.01


def test_the_ranges_that_it_tells_of_are_those_that_come_about(make: Make) -> None:
    once, again = make(), make()
    told = once.run(**equalize()).data["activations"]

    again.run(**equalize())
    seen = again.run(**equalize()).data["activations"]

    for before, after in zip(told, seen, strict=True):  # type: ignore[call-overload]
        np.testing.assert_allclose(after["before"], before["after"], rtol=1e-3, atol=1e-4)


def test_it_pays_where_channels_are_unlike(make: Make) -> None:
    plain, equalized = make(), make()
    for bench in (plain, equalized):
        unbalance(bench)
    plain.run(calibrate=pb.Calibrate())

    equalized.run(**equalize())
    equalized.run(calibrate=pb.Calibrate())

    assert equalized.sqnr_db() > plain.sqnr_db() + 2


def test_no_channel_passes_the_bound_of_relu6(make: Make) -> None:
    bench = make(relu6=True)

    findings = bench.run(**equalize(strength=1.0))

    rows = findings.data["activations"]
    # All but the sums of the residuals.
    clipped = [row for row in rows if len(row["readers"]) == 1]  # type: ignore[attr-defined]
    assert len(clipped) == 4
    assert all(np.max(row["after"]) < 6.001 for row in clipped)
    assert findings.values["float_sqnr_db"] > 80
    # On other samples, which may pass it.
    assert bench.sqnr_db() > 30


def test_depthwise_layers_with_one_scale_take_no_more_than_the_others(make: Make) -> None:
    kinds = (CHANNEL, TENSOR)

    found = [make(quantization=kind).run(**equalize(strength=0.25)) for kind in kinds]

    # In front of the first depthwise layer.
    fine, coarse = (spread(one.data["activations"][1]["after"]) for one in found)  # type: ignore[index]
    assert fine < 1.01
    assert coarse > 1.5


def test_what_batch_norms_saw_follows(make: Make) -> None:
    bench, plain = make(), make()
    for one in (bench, plain):
        one.run(fold_batch_norms=pb.FoldBatchNorms())
    bench.run(**equalize())
    for one in (bench, plain):
        one.run(calibrate=pb.Calibrate())
    scaled, kept = (one.model.quantized_model() for one in (bench, plain))

    for layer in kept.layers():
        if layer.name not in kept.moments():
            continue
        ratio = scaled.bias(layer) / kept.bias(layer)  # type: ignore[operator]
        torch.testing.assert_close(
            scaled.moments()[layer.name].mean,
            kept.moments()[layer.name].mean * ratio,
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_same_step_twice_gives_the_same_model(make: Make) -> None:
    first, second = make(), make()

    assert first.run(**equalize()) == second.run(**equalize())

    batch = pictures(1)[0]
    for name, values in first.model.predict(batch).items():
        np.testing.assert_array_equal(values, second.model.predict(batch)[name])


def test_few_samples_are_warned_of(make: Make) -> None:
    bench = make(samples=1)

    bench.run(**equalize())

    assert bench.reasons() == ["TOO_FEW_SAMPLES"]


def test_a_model_without_channels_to_scale_is_left_with_the_reasons(tmp_path: Path) -> None:
    model = open_graph(zoo.hard_swish(), tmp_path)
    data = InMemory([zoo.images(8, 8)], key="image")
    bench = Bench(model, data, data, tmp_path)

    with pytest.raises(NotApplicable, match="Add reads what no layer writes"):
        bench.run(**equalize())
