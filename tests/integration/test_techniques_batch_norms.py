"""Batch-norm re-estimation with folded batch norms, against AIMET's with unfolded ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lighten import v1 as pb

pytest.importorskip("aimet_torch")
pytest.importorskip("aimet_onnx")

from aimet_torch.bn_reestimation import reestimate_bn_stats
from aimet_torch.quantsim import QuantizationSimModel

from lighten_service.techniques import NotApplicable
from lighten_service.worker import quantsim
from lighten_service.worker.algorithms.batch_norms import output_moments, reestimate
from tests.support import onnx_models as zoo
from tests.support.depthwise_net import SIDE, DepthwiseNet, pictures
from tests.support.small_models import sqnr_db
from tests.support.technique_kit import (
    ENGINES,
    TENSOR,
    Bench,
    InMemory,
    calibrated_bench,
    open_engine,
    open_graph,
)

W4A8 = pb.QuantizationConfig(
    weights=pb.DATA_TYPE_INT4, weight_granularity=pb.GRANULARITY_PER_CHANNEL
)
REESTIMATE = {"reestimate_batch_norms": pb.ReestimateBatchNorms()}
# One batch, because AIMET averages variances of batches.
DATA = pictures(1, size=64)


def network() -> DepthwiseNet:
    """Batch norms without an epsilon to speak of, which folding hides in the weights."""
    module = DepthwiseNet()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = 1e-12
    return module


@pytest.fixture(scope="module", params=ENGINES)
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    scratch = tmp_path_factory.mktemp("calibrated")
    model = open_engine(request.param, network(), scratch)
    return calibrated_bench(model, InMemory(DATA), InMemory(DATA), scratch, W4A8)


@pytest.fixture
def bench(calibrated: Bench) -> Iterator[Bench]:
    with calibrated.restored():
        yield calibrated


def test_outputs_of_layers_get_the_moments_of_their_batch_norms(bench: Bench) -> None:
    quantized = bench.model.quantized_model()
    moments = quantized.moments()

    layers = list(reestimate(bench.context(), quantized, bench.calibration))

    assert [layer.layer for layer in layers] == list(moments)
    assert not any(layer.left_channels for layer in layers)
    for visit in quantized.walk(DATA, quantize_activations=True, check=lambda: None):
        if visit.layer.name not in moments:
            continue
        grid, bias = quantized.weight_grid(visit.layer), quantized.bias(visit.layer)
        assert grid is not None
        assert bias is not None
        weight = grid.round(quantized.weight(visit.layer))
        mean, std = output_moments(visit, weight, bias, lambda: None)
        wanted = moments[visit.layer.name]
        torch.testing.assert_close(mean, wanted.mean.double(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(std, wanted.std.double(), rtol=1e-3, atol=1e-3)


def test_integers_of_weights_stay(bench: Bench) -> None:
    def integers() -> list[torch.Tensor]:
        quantized = bench.model.quantized_model()
        found = []
        for layer in quantized.layers():
            grid = quantized.weight_grid(layer)
            assert grid is not None
            found.append(torch.round(grid.round(quantized.weight(layer)) / grid.scale))
        return found

    before = integers()
    bench.run(**REESTIMATE)

    assert all(torch.equal(old, new) for old, new in zip(before, integers(), strict=True))


def test_the_result_is_that_of_aimet_with_unfolded_batch_norms(
    bench: Bench, tmp_path: Path
) -> None:
    config = quantsim.config_file(W4A8, tmp_path, pb.ENGINE_TORCH)
    aimet = QuantizationSimModel(
        network(), torch.zeros(1, 3, SIDE, SIDE), default_param_bw=4, config_file=str(config)
    )
    for module in aimet.model.modules():
        for quantizers in ("input_quantizers", "output_quantizers"):
            for index in range(len(getattr(module, quantizers, ()))):
                getattr(module, quantizers)[index] = None
        if isinstance(module, torch.nn.BatchNorm2d):
            module.param_quantizers["weight"] = None
    images = torch.from_numpy(DATA[0]["input"])
    aimet.compute_encodings(lambda model, _: model(images), None)
    reestimate_bn_stats(aimet.model, [images])
    with torch.no_grad():
        expected = aimet.model(images).numpy()
    quantized = bench.model.quantized_model()

    with quantized.only([q.name for q in quantized.quantizers() if q.is_weight]):
        before = bench.model.predict(DATA[0])["output"]
        assert len(list(reestimate(bench.context(), quantized, bench.calibration))) == 7
        after = bench.model.predict(DATA[0])["output"]

    assert sqnr_db(expected, before) < 20
    assert sqnr_db(expected, after) > 50


def test_few_samples_and_a_loss_are_warned_about(bench: Bench) -> None:
    findings = bench.run(**REESTIMATE)

    lost = findings.values["sqnr_db_after"] < findings.values["sqnr_db_before"]
    assert bench.reasons() == ["TOO_FEW_SAMPLES", *["STEP_LOST_FIDELITY"] * lost]
    assert "128 would do" in bench.warnings[0].message


@pytest.mark.parametrize(
    ("batch_norm", "reason"), [(True, "PER_CHANNEL"), (False, "no batch norm")]
)
def test_what_it_cannot_change_is_said_with_the_reason(
    batch_norm: bool, reason: str, tmp_path: Path
) -> None:
    data = InMemory([zoo.images(4, size=12)], key="image")
    model = open_graph(zoo.relu_net(batch_norm=batch_norm), tmp_path)
    bench = calibrated_bench(model, data, data, tmp_path, TENSOR)

    with pytest.raises(NotApplicable, match=reason):
        bench.run(**REESTIMATE)
