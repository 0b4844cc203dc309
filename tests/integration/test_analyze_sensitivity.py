"""Sensitivity analysis on real models, on both engines."""

import json
from pathlib import Path

import numpy as np
import pytest

from lighten import v1 as pb
from lighten_service.techniques import Findings
from lighten_service.worker.algorithms.sensitivity import by_layer
from lighten_service.worker.context import Cancelled
from lighten_service.worker.metrics import OutputSums
from lighten_service.worker.report import render_report
from tests.support.depthwise_net import SIDE, DepthwiseNet
from tests.support.technique_kit import ENGINES, TENSOR, Bench, InMemory, open_engine

BATCHES = 3
BATCH = 8


@pytest.fixture(scope="module", params=ENGINES)
def calibrated(request, tmp_path_factory) -> Bench:
    folder: Path = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    shape = BATCH, 3, SIDE, SIDE
    data = InMemory(
        [{"input": rng.standard_normal(shape).astype(np.float32)} for _ in range(BATCHES)]
    )
    model = open_engine(request.param, DepthwiseNet().eval(), folder)
    bench = Bench(model, data, data, folder, TENSOR)
    bench.run(fold_batch_norms=pb.FoldBatchNorms())
    bench.run(calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX))
    return bench


@pytest.fixture
def bench(calibrated: Bench) -> Bench:
    """The analysis leaves the model as it is, so that one is enough."""
    calibrated.warnings.clear()
    return calibrated


def analyze(bench: Bench, samples: int = 24) -> Findings:
    return bench.run(analyze_sensitivity=pb.AnalyzeSensitivity(max_samples=samples))


def direct(bench: Bench, names: list[str]) -> float:
    """SQNR with some quantizers on, the whole model run for them alone."""
    quantized = bench.model.quantized_model()
    sums = OutputSums()
    for batch in bench.calibration.batches():
        with quantized.only(names):
            found = bench.model.predict(batch.inputs)["output"]
        with quantized.only(()):
            expected = bench.model.predict(batch.inputs)["output"]
        sums.add(expected, found)
    return sums.result("output").sqnr_db


def test_every_figure_is_that_of_the_whole_model_run_for_it(bench: Bench) -> None:
    found = analyze(bench).data
    quantizers = bench.model.quantized_model().quantizers()
    groups = by_layer(quantizers)

    assert [row["layer"] for row in found["layers"]] == [group[0].layer for group in groups]
    for row, group in zip(found["layers"], groups, strict=True):
        want = direct(bench, [quantizer.name for quantizer in group])
        assert row["alone_db"] == pytest.approx(want, abs=0.05), row["layer"]
    for key, kept in (
        ("all_db", quantizers),
        ("weights_db", [each for each in quantizers if each.is_weight]),
        ("activations_db", [each for each in quantizers if not each.is_weight]),
    ):
        want = direct(bench, [each.name for each in kept])
        assert found["model"][key] == pytest.approx(want, abs=0.05), key


def test_layers_have_their_error_their_bits_and_the_ranges_of_their_channels(bench: Bench) -> None:
    found = analyze(bench).data
    rows = {row["layer"]: row for row in found["layers"]}
    quantized = bench.model.quantized_model()
    for layer in quantized.layers():
        row = rows[layer.name]
        channels = quantized.weight(layer).movedim(layer.kernel.channel_axis, 0).flatten(1)
        assert row["weight_bits"] == 8
        assert row["channel_ranges"] == [[c.min().item(), c.max().item()] for c in channels]
    # The head sees the noise of all layers, and adds its own.
    head = rows[quantized.layers()[-1].name]
    assert head["output_db"] == pytest.approx(found["model"]["all_db"], abs=1.0)
    first = rows[quantized.layers()[0].name]
    assert first["output_db"] > head["output_db"]
    grids = {each.tensor: each for each in bench.model.encodings() if not each.is_weight}
    assert {each["tensor"] for each in found["activations"]} == set(grids)
    for each in found["activations"]:
        assert each["range"][0] <= 0 < each["range"][1]


def test_the_model_is_left_as_it_is(bench: Bench) -> None:
    before = bench.measure(), bench.model.encodings()
    analyze(bench)
    assert (bench.measure(), bench.model.encodings()) == before


def test_the_result_has_the_worst_layers_and_the_report_shows_them(bench: Bench) -> None:
    found = analyze(bench)
    worst = min(found.data["layers"], key=lambda row: row["alone_db"])
    assert worst["layer"] in found.summary
    assert found.values[f"layer_sqnr_db:{worst['layer']}"] == worst["alone_db"]
    assert found.values["weights_sqnr_db"] == found.data["model"]["weights_db"]
    assert json.loads(json.dumps(found.data, allow_nan=False)) == found.data

    step = pb.Step(id="sensitivity", analyze_sensitivity=pb.AnalyzeSensitivity())
    result = pb.JobResult(steps=[pb.StepReport(step=step)])
    page = render_report("j", pb.JobSpec(), result, {step.id: found.data}, bench.model.encodings())
    assert "Where quantization loses" in page
    assert worst["layer"] in page


def test_few_samples_are_told(bench: Bench) -> None:
    analyze(bench, samples=8)
    assert bench.reasons() == ["TOO_FEW_SAMPLES"]
    assert "16 would do" in bench.warnings[0].message


class Stops:
    """A reporter that cancels after some checks."""

    def __init__(self, left: int) -> None:
        self.left = left

    def send(self, event: pb.JobEvent) -> None: ...

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled


def test_it_can_be_cancelled_and_leaves_every_quantizer_on(bench: Bench) -> None:
    from lighten_service.techniques import run_step

    step = pb.Step(id="s", analyze_sensitivity=pb.AnalyzeSensitivity(max_samples=24))
    before = bench.sqnr_db()
    with pytest.raises(Cancelled):
        run_step(bench.context(Stops(9)), bench.model, step)
    assert bench.sqnr_db() == before
