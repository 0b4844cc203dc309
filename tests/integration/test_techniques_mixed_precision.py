"""Mixed precision and the sensitivities that it sorts by, on real models of both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lighten import v1 as pb

pytest.importorskip("aimet_torch")
pytest.importorskip("aimet_onnx")

from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.techniques import NotApplicable
from lighten_service.worker.algorithms.fidelity import sqnr_db, tune
from lighten_service.worker.algorithms.sensitivity import layer_sensitivities, most_sensitive_first
from lighten_service.worker.algorithms.widening import WiderTypes, fewest
from lighten_service.worker.quantized import Quantizer
from tests.support import onnx_models as zoo
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import (
    ENGINES,
    Bench,
    InMemory,
    calibrated_bench,
    open_engine,
    open_graph,
)

W4A8 = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4)


@pytest.fixture(scope="module", params=ENGINES)
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    scratch = tmp_path_factory.mktemp("calibrated")
    model = open_engine(request.param, DepthwiseNet(), scratch)
    data = InMemory(pictures(2))
    return calibrated_bench(model, data, data, scratch, W4A8)


@pytest.fixture
def bench(calibrated: Bench) -> Iterator[Bench]:
    with calibrated.restored():
        yield calibrated


def mixed(**parameters: object) -> dict[str, pb.MixedPrecision]:
    return {"mixed_precision": pb.MixedPrecision(**parameters)}


def widened(rows: object) -> list[bool]:
    return [row["widened"] for row in rows]  # type: ignore[attr-defined]


def test_a_layer_alone_is_measured_as_if_the_others_were_float(bench: Bench) -> None:
    quantized = bench.model.quantized_model()

    found = layer_sensitivities(bench.context(), bench.model, 16)

    assert {q.name for one in found for q in one.quantizers} == {
        q.name for q in quantized.quantizers()
    }
    worst = most_sensitive_first(found)[0]
    with quantized.only([quantizer.name for quantizer in worst.quantizers]):
        assert sqnr_db(tune(bench.context(), bench.model, 16)) == pytest.approx(
            worst.sqnr_db, abs=0.1
        )


def test_the_fewest_layers_that_reach_the_target_are_widened(bench: Bench) -> None:
    target = bench.sqnr_db() + 8

    findings = bench.run(**mixed(min_sqnr_db=target))

    count = int(findings.values["widened_layers"])
    rows = findings.data["layers"]
    assert findings.values["sqnr_db_after"] >= target
    assert bench.sqnr_db() == pytest.approx(findings.values["sqnr_db_after"], abs=0.01)
    assert 0 < count < len(widened(rows))
    # Bisection, where one evaluation for each number would have been 12.
    assert findings.values["evaluations"] <= len(widened(rows)) + 6
    assert findings.values["bops_ratio"] > 1
    bits = {
        quantizer.layer: quantizer.bits
        for quantizer in bench.model.quantized_model().quantizers()
        if quantizer.is_weight
    }
    assert {row["layer"]: row["weight_bits"] for row in rows if "weight_bits" in row} == bits  # type: ignore[attr-defined]
    assert bench.reasons() == []


def test_the_same_step_twice_gives_the_same_model(bench: Bench) -> None:
    def run() -> object:
        with bench.restored():
            bench.run(**mixed(min_sqnr_db=25))
            return bench.model.encodings()

    assert run() == run()


def test_a_target_out_of_reach_is_reported_and_the_best_kept(bench: Bench) -> None:
    findings = bench.run(**mixed(min_sqnr_db=190))

    assert bench.reasons() == ["TARGET_MISSED"]
    assert findings.values["sqnr_db_after"] > findings.values["sqnr_db_before"] + 10
    assert bench.sqnr_db() == pytest.approx(findings.values["sqnr_db_after"], abs=0.01)


def test_bit_operations_stay_within_what_may_be_spent(bench: Bench) -> None:
    findings = bench.run(**mixed(max_bops_ratio=1.6))

    assert 1 < findings.values["bops_ratio"] <= 1.6
    assert findings.values["sqnr_db_after"] > findings.values["sqnr_db_before"]
    count = int(findings.values["widened_layers"])
    assert widened(findings.data["layers"])[:count] == [True] * count


def test_no_layer_fits_into_no_more_operations(bench: Bench) -> None:
    with pytest.raises(NotApplicable, match="raise max_bops_ratio"):
        bench.run(**mixed(max_bops_ratio=1.0001))

    assert all(q.bits <= 8 for q in bench.model.quantized_model().quantizers())


def test_agreement_is_a_target_too(bench: Bench) -> None:
    findings = bench.run(**mixed(max_disagreement=0.0))

    assert bench.measure().value(pb.METRIC_AGREEMENT) == 1.0
    assert findings.values["widened_layers"] > 0


def test_agreement_needs_class_scores(tmp_path: Path) -> None:
    data = InMemory([zoo.images(4, size=12)], key="image")
    bench = calibrated_bench(
        open_graph(zoo.relu_net(), tmp_path), data, data, tmp_path, pb.QuantizationConfig()
    )

    with pytest.raises(FailedPrecondition, match="class scores") as caught:
        bench.run(**mixed(max_disagreement=0.1))

    assert caught.value.reason == "NO_CLASS_SCORES"


@pytest.mark.parametrize("needed", [1, 2, 7, 12, 13])
def test_bisection_finds_the_smallest_number_that_is_enough(needed: int) -> None:
    tried: list[int] = []

    def enough(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(12, enough) == (needed if needed <= 12 else None)
    assert len(tried) <= 5


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        (Quantizer("w", "l", "Conv", True, 4), 8),
        (Quantizer("w", "l", "Conv", True, 8), None),
        (Quantizer("a", "l", "Conv", False, 8), 16),
        (Quantizer("a", "l", "Conv", False, 16, is_float=True), None),
    ],
)
def test_a_type_is_only_ever_widened(quantizer: Quantizer, bits: int | None) -> None:
    assert WiderTypes(weights=8, activations=16).bits(quantizer) == bits
