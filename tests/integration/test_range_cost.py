"""What weights that suit every CPU cost, and that the advice gives what it promises."""

import json
from pathlib import Path

import numpy as np
import pytest

from lighten import v1 as pb
from lighten_service.worker import range_cost
from lighten_service.worker.range_cost import can_measure, measure_range_cost
from lighten_service.worker.runtime import GraphSession
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import ENGINES, Bench, InMemory, open_engine

CALIBRATE = pb.Step(calibrate=pb.Calibrate())


def config(*overrides: pb.LayerOverride) -> pb.QuantizationConfig:
    return pb.QuantizationConfig(
        weight_granularity=pb.GRANULARITY_PER_CHANNEL,
        fuse_activations=True,
        weight_range=pb.WEIGHT_RANGE_EVERY_CPU,
        overrides=overrides,
    )


def bench_of(engine: str, scratch: Path, quantization: pb.QuantizationConfig) -> Bench:
    scratch.mkdir()
    model = open_engine(engine, DepthwiseNet(), scratch)
    model.export_float(scratch / "fp32.onnx")
    data = InMemory(pictures(8)), InMemory(pictures(2, seed=1))
    bench = Bench(model, *data, scratch, quantization)
    bench.run(fold_batch_norms=pb.FoldBatchNorms())
    bench.run(calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX))
    bench.model.export_qdq(scratch / "model.qdq.onnx")
    return bench


def measure(bench: Bench) -> pb.WeightRangeReport | None:
    return measure_range_cost(
        bench.context(),
        bench.model,
        bench.scratch / "model.qdq.onnx",
        bench.scratch / "fp32.onnx",
        bench.calibration,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_layers_named_win_back_what_is_promised(engine: str, tmp_path: Path) -> None:
    bench = bench_of(engine, tmp_path / "bound", config())
    report = measure(bench)
    assert report is not None
    assert report.samples == range_cost.SAMPLES
    assert report.full_range_sqnr_db > report.every_cpu_sqnr_db + range_cost.WORTH_DB
    lost = report.full_range_sqnr_db - report.every_cpu_sqnr_db
    assert report.uint8_sqnr_db > report.every_cpu_sqnr_db + 0.6 * lost
    assert report.uint8_latency_ratio > 0
    (warning,) = bench.warnings
    assert warning.reason == "WEIGHT_RANGE_COSTS"

    # The setting as the warning gives it, submitted.
    setting = json.loads(warning.message.partition("overrides ")[2])
    assert setting["select"]["layers"] == list(report.uint8_layers)
    chosen = pb.LayerOverride(
        select=pb.LayerSelector(layers=setting["select"]["layers"]),
        uint8_weights=setting["uint8_weights"],
    )
    again = bench_of(engine, tmp_path / "again", config(chosen))
    batches = [batch.inputs for batch in bench.calibration.batches()]
    followed = GraphSession(again.scratch / "model.qdq.onnx")
    promised = GraphSession(bench.scratch / "range-cost" / "mixture.onnx")
    for batch in batches:
        np.testing.assert_array_equal(
            followed.predict(batch)["output"], promised.predict(batch)["output"]
        )
    rest = measure(again)
    assert rest is not None
    assert rest.every_cpu_sqnr_db == pytest.approx(report.uint8_sqnr_db, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_is_as_it_was(engine: str, tmp_path: Path) -> None:
    bench = bench_of(engine, tmp_path / "bound", config())
    before = bench.model.predict(pictures(1)[0])["output"]
    measure(bench)
    np.testing.assert_array_equal(bench.model.predict(pictures(1)[0])["output"], before)
    bench.model.export_qdq(tmp_path / "after.onnx")
    deployed = (bench.scratch / "model.qdq.onnx").read_bytes()
    assert (tmp_path / "after.onnx").read_bytes() == deployed


def test_many_layers_stand_in_the_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_cost, "_NAMED", 1)
    monkeypatch.setattr(range_cost, "_ENOUGH", 2.0)  # out of reach: every layer is named
    bench = bench_of("onnx", tmp_path / "bound", config())
    report = measure(bench)
    assert report is not None
    assert len(report.uint8_layers) == 8
    assert report.uint8_sqnr_db == pytest.approx(report.full_range_sqnr_db, abs=1e-9)
    (warning,) = bench.warnings
    assert "8 layers" in warning.message
    assert warning.message.endswith("JobResult.weight_range.uint8_layers has")


def test_a_small_loss_is_told_and_no_layer_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_cost, "WORTH_DB", 5.0)
    bench = bench_of("onnx", tmp_path / "bound", config())
    report = measure(bench)
    assert report is not None
    assert report.every_cpu_sqnr_db > 20
    assert not report.uint8_layers
    assert not bench.warnings


def test_a_file_that_the_bound_did_not_change_has_no_report(tmp_path: Path) -> None:
    everything = pb.LayerOverride(
        select=pb.LayerSelector(op_types=["Conv", "Gemm"]), uint8_weights=True
    )
    bench = bench_of("onnx", tmp_path / "unsigned", config(everything))
    assert measure(bench) is None


@pytest.mark.parametrize(
    ("quantization", "steps", "expected"),
    [
        (config(), [CALIBRATE], True),
        (config(), [CALIBRATE, pb.Step(bias_correction=pb.BiasCorrection())], True),
        (config(), [CALIBRATE, pb.Step(ada_round=pb.AdaRound())], False),
        (config(), [CALIBRATE, pb.Step(sequential_mse=pb.SequentialMse())], False),
        (pb.QuantizationConfig(weight_range=pb.WEIGHT_RANGE_FULL), [CALIBRATE], False),
    ],
)
def test_plans_that_choose_weights_themselves_are_not_measured(
    quantization: pb.QuantizationConfig, steps: list[pb.Step], expected: bool
) -> None:
    plan = pb.Plan(quantization=quantization, steps=pb.Steps(steps=steps))
    assert can_measure(plan) is expected
