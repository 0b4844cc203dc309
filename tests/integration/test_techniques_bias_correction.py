"""Bias correction against what the paper says of it, on real models of both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lighten import v1 as pb

pytest.importorskip("aimet_torch")
pytest.importorskip("aimet_onnx")

from lighten_service.techniques import NotApplicable
from lighten_service.worker.algorithms.bias_correction import mean_output, mean_shift
from lighten_service.worker.context import Cancelled
from lighten_service.worker.kernels import Kernel
from tests.support import onnx_models as zoo
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import (
    ENGINES,
    TENSOR,
    Bench,
    InMemory,
    Silent,
    calibrated_bench,
    open_engine,
    open_graph,
)

EMPIRICAL = {"bias_correction": pb.BiasCorrection()}
ANALYTIC = {"bias_correction": pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_ANALYTIC)}


@pytest.fixture(scope="module", params=ENGINES)
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A depthwise network under INT8 weights of one scale."""
    scratch = tmp_path_factory.mktemp("calibrated")
    model = open_engine(request.param, DepthwiseNet(), scratch)
    data, others = InMemory(pictures(8)), InMemory(pictures(8, seed=1))
    return calibrated_bench(model, data, others, scratch, TENSOR)


@pytest.fixture
def bench(calibrated: Bench) -> Iterator[Bench]:
    with calibrated.restored():
        yield calibrated


def shifts(bench: Bench, *, quantize_activations: bool = True) -> dict[str, float]:
    """Root mean square over channels of each layer's mean error, on calibration samples."""
    quantized = bench.model.quantized_model()
    batches = [batch.inputs for batch in bench.calibration.batches()]
    walk = quantized.walk(batches, quantize_activations=quantize_activations, check=lambda: None)
    return {
        visit.layer.name: float(mean_shift(quantized, visit, lambda: None).square().mean().sqrt())
        for visit in walk
    }


def test_the_empirical_method_takes_back_the_shift_of_every_layer(bench: Bench) -> None:
    before, sqnr_db = shifts(bench), bench.sqnr_db()

    findings = bench.run(**EMPIRICAL)

    after = shifts(bench)
    assert findings.values["corrected_layers"] == len(before) == 8
    assert sum(before.values()) > 0.5
    assert all(left < 0.01 * max(before.values()) for left in after.values())
    # On pictures that it has not seen.
    assert bench.sqnr_db() > sqnr_db + 2


def test_the_analytic_method_takes_back_most_of_what_weights_shift(bench: Bench) -> None:
    before, sqnr_db = shifts(bench, quantize_activations=False), bench.sqnr_db()

    findings = bench.run(**ANALYTIC)

    after = shifts(bench, quantize_activations=False)
    assert sum(after.values()) < 0.4 * sum(before.values())
    assert bench.sqnr_db() > sqnr_db + 1
    # Nothing is known of the pictures themselves.
    assert findings.values["left_layers"] == 1
    stem, *others = findings.data["layers"]  # type: ignore[misc]
    assert "does not follow from batch norms" in stem["left"]
    assert all(layer["shift_rms"] > 0 for layer in others)


def test_too_few_samples_are_warned_about(bench: Bench) -> None:
    context = bench.context()
    context.calibration = InMemory(pictures(1))

    bench.run_in(context, **EMPIRICAL)

    assert [warning.reason for warning in bench.warnings] == ["TOO_FEW_SAMPLES"]
    assert "32 would do" in bench.warnings[0].message


def test_a_correction_can_be_stopped_between_layers(bench: Bench) -> None:
    class Impatient(Silent):
        sent = 0

        def send(self, event: pb.JobEvent) -> None:
            self.sent += 1

        def check(self) -> None:
            if self.sent == 2:
                raise Cancelled

    reporter = Impatient()

    with pytest.raises(Cancelled):
        bench.run_in(bench.context(reporter), **EMPIRICAL)

    assert reporter.sent == 2


def test_without_batch_norms_nothing_is_known_without_data(tmp_path: Path) -> None:
    model = open_graph(zoo.relu_net(batch_norm=False), tmp_path)
    data = InMemory([zoo.images(4, size=12)], key="image")
    bench = Bench(model, data, data, tmp_path, TENSOR)
    bench.run(calibrate=pb.Calibrate())

    with pytest.raises(NotApplicable, match="use the empirical method"):
        bench.run(**ANALYTIC)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (Kernel(spatial=2, stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1)), (4, 6, 3, 3)),
        (
            Kernel(spatial=2, stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1), groups=3),
            (9, 2, 3, 3),
        ),
        (Kernel(), (4, 6)),
    ],
    ids=["conv", "grouped", "linear"],
)
def test_the_mean_output_is_that_of_constant_channels(
    kernel: Kernel, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(shape, generator=generator), torch.randn(6, generator=generator)
    x = mean.view(1, 6, 1, 1).expand(1, 6, 5, 5) if kernel.spatial else mean.view(1, 6)

    output = kernel.apply(x, weight, None)

    expected = output.movedim(kernel.output_axis, 0).flatten(1).mean(1)
    torch.testing.assert_close(mean_output(kernel, weight, mean), expected)


def test_the_mean_output_of_a_transposed_layer_counts_the_taps_that_meet() -> None:
    kernel = Kernel(
        spatial=2,
        transposed=True,
        stride=(2, 2),
        padding=((0, 0),) * 2,
        dilation=(1, 1),
        output_padding=(0, 0),
        groups=2,
    )
    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(6, 2, 2, 2, generator=generator), torch.arange(6.0)

    output = kernel.apply(mean.view(1, 6, 1, 1).expand(1, 6, 5, 5), weight, None)

    torch.testing.assert_close(mean_output(kernel, weight, mean), output.mean((0, 2, 3)))
