"""AdaRound and sequential MSE on both engines, with real AIMET."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aimet_torch")

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.techniques import Findings, NotApplicable, run_step
from lighten_service.worker.context import Cancelled
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.exact import exact_session
from tests.support.small_models import sqnr_db
from tests.support.technique_kit import ENGINES, Bench, InMemory, open_engine

SIGNAL = pb.QuantizationConfig(
    weights=pb.DATA_TYPE_INT4,
    activations=pb.DATA_TYPE_INT8,
    weight_granularity=pb.GRANULARITY_PER_CHANNEL,
    fuse_activations=True,
)
STEPS = {
    "ada_round": pb.AdaRound(
        iterations=200,
        max_samples=64,
        regularization=0.01,
        warm_start=0.2,
        beta_start=20,
        beta_end=2,
    ),
    "sequential_mse": pb.SequentialMse(candidates=20, max_samples=64),
}


class Reporter:
    """Keeps events, and stops the job at the first that a test chooses."""

    def __init__(self, stop_at: str = "") -> None:
        self.events: list[pb.JobEvent] = []
        self._stop_at = stop_at

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def check(self) -> None:
        if self._stop_at and any(self._stop_at in str(event) for event in self.events):
            raise Cancelled


def open_bench(engine: str, scratch: Path, quantization: pb.QuantizationConfig = SIGNAL) -> Bench:
    scratch.mkdir(exist_ok=True)
    model = open_engine(engine, DepthwiseNet(), scratch)
    model.fold_batch_norms()
    calibration, evaluation = InMemory(pictures(8)), InMemory(pictures(4, seed=1))
    bench = Bench(model, calibration, evaluation, scratch, quantization)
    bench.run(calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX))
    return bench


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(engine: str, tmp_path: Path):
    bench = open_bench(engine, tmp_path)
    yield bench
    bench.model.close()


def run(bench: Bench, name: str) -> Findings:
    return bench.run(**{name: STEPS[name]})


def outputs(bench: Bench) -> np.ndarray:
    return np.concatenate(
        [bench.model.predict(batch.inputs)["output"] for batch in bench.evaluation.batches()]
    )


def test_ada_round_gains_on_unseen_samples(bench: Bench) -> None:
    nearest = bench.sqnr_db()
    findings = run(bench, "ada_round")
    assert bench.sqnr_db() > nearest + 2
    layers = findings.data["layers"]
    assert len(layers) == 8
    for layer in layers:
        assert layer["kept_nearest"] == (layer["learnt_error"] >= layer["nearest_error"])
    assert findings.values["rounded_layers"] + findings.values["kept_nearest"] == 8
    assert findings.values["estimated_seconds"] > 0
    assert bench.reasons() == ["TOO_FEW_SAMPLES"]
    assert "500 would do" in bench.warnings[0].message


def test_sequential_mse_gains_on_unseen_samples(engine: str, tmp_path: Path) -> None:
    per_tensor = pb.QuantizationConfig()
    per_tensor.CopyFrom(SIGNAL)
    per_tensor.weight_granularity = pb.GRANULARITY_PER_TENSOR
    bench = open_bench(engine, tmp_path, per_tensor)
    nearest = bench.sqnr_db()
    findings = run(bench, "sequential_mse")
    assert bench.sqnr_db() > nearest + 1
    for layer in findings.data["layers"]:
        assert layer["error_after"] <= layer["error_before"]
        assert len(layer["range_shares"]) == 1
    assert not bench.reasons()


def test_sequential_mse_works_on_eight_bits(engine: str, tmp_path: Path) -> None:
    bench = open_bench(engine, tmp_path, pb.QuantizationConfig(weights=pb.DATA_TYPE_INT8))
    assert run(bench, "sequential_mse").values["rescaled_layers"] > 0


@pytest.mark.parametrize("name", STEPS)
def test_the_same_step_twice_gives_the_same_model(engine: str, name: str, tmp_path: Path) -> None:
    first, second = (open_bench(engine, tmp_path / side) for side in ("one", "two"))
    run(first, name)
    run(second, name)
    assert first.model.encodings() == second.model.encodings()
    assert np.array_equal(outputs(first), outputs(second))
    quantized = [bench.model.quantized_model() for bench in (first, second)]
    for one, other in zip(*(model.layers() for model in quantized), strict=True):
        assert quantized[0].weight(one).equal(quantized[1].weight(other))


@pytest.mark.parametrize("name", STEPS)
def test_the_export_runs_as_simulated(bench: Bench, name: str, tmp_path: Path) -> None:
    run(bench, name)
    path = tmp_path / "quantized.onnx"
    bench.model.export_qdq(path)
    session = exact_session(path)
    exported = [
        session.run(None, {"input": batch.inputs["input"]})[0]
        for batch in bench.evaluation.batches()
    ]
    # Far more than the 4-bit model's own distance to FP32.
    assert sqnr_db(outputs(bench), np.concatenate(exported)) > 35


def test_ada_round_leaves_weights_on_the_grids_of_the_calibration(bench: Bench) -> None:
    quantized = bench.model.quantized_model()
    before = {layer.name: quantized.weight_grid(layer) for layer in quantized.layers()}
    run(bench, "ada_round")
    for layer in quantized.layers():
        grid, weight = before[layer.name], quantized.weight(layer)
        assert quantized.weight_grid(layer).scale.equal(grid.scale)
        assert (weight - grid.round(weight)).abs().max() <= 1e-6 * grid.scale.max()


def test_ada_round_stops_within_a_layer(bench: Bench) -> None:
    reporter = Reporter(stop_at="done: 20")
    step = pb.Step(id="step", ada_round=STEPS["ada_round"])
    with pytest.raises(Cancelled):
        run_step(bench.context(reporter), bench.model, step)
    assert not any("error of the output" in event.log.message for event in reporter.events)


def test_ada_round_tells_its_cost_before_and_progress_in_order(bench: Bench) -> None:
    reporter = Reporter()
    run_step(bench.context(reporter), bench.model, pb.Step(ada_round=STEPS["ada_round"]))
    told = [event.WhichOneof("payload") for event in reporter.events]
    announced = next(i for i, event in enumerate(reporter.events) if "about" in event.log.message)
    assert announced < told.index("progress")
    fractions = [event.progress.fraction for event in reporter.events if event.HasField("progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)


def test_a_selector_limits_the_layers(bench: Bench) -> None:
    step = pb.SequentialMse()
    step.CopyFrom(STEPS["sequential_mse"])
    step.layers.op_types.append("Gemm")
    assert len(bench.run(sequential_mse=step).data["layers"]) == 1
    step.layers.layers.append("nothing*")
    with pytest.raises(InvalidArgument) as caught:
        bench.run(sequential_mse=step)
    assert caught.value.reason == "SELECTOR_MATCHES_NOTHING"


@pytest.mark.parametrize("name", STEPS)
def test_layers_without_a_grid_are_left_and_told(engine: str, name: str, tmp_path: Path) -> None:
    mixed = pb.QuantizationConfig()
    mixed.CopyFrom(SIGNAL)
    mixed.overrides.add(select=pb.LayerSelector(op_types=["Gemm"]), leave_float=True)
    bench = open_bench(engine, tmp_path, mixed)
    findings = run(bench, name)
    assert findings.values["left_layers"] == 1
    assert "no integer grid" in findings.summary
    step = type(STEPS[name])()
    step.CopyFrom(STEPS[name])
    step.layers.op_types.append("Gemm")
    with pytest.raises(NotApplicable, match="no integer grid"):
        bench.run(**{name: step})
