"""Cross-layer equalization part by part, on real models of both engines."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lighten import v1 as pb

pytest.importorskip("aimet_torch")
pytest.importorskip("aimet_onnx")

from lighten_service.techniques import NotApplicable
from lighten_service.worker.graphs.weight_ranges import weight_ranges
from tests.support import onnx_models as zoo
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import ENGINES, TENSOR, Bench, InMemory, open_engine

NEVER = pb.HIGH_BIAS_ABSORPTION_NEVER
ALWAYS = pb.HIGH_BIAS_ABSORPTION_ALWAYS
Make = Callable[..., Bench]


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def bench(*, relu6: bool = False, seed: int = 0) -> Bench:
        scratch = tmp_path / f"{relu6}-{seed}-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        model = open_engine(request.param, DepthwiseNet(relu6=relu6, seed=seed), scratch)
        data, others = InMemory(pictures(2)), InMemory(pictures(2, seed=1))
        return Bench(model, data, others, scratch, TENSOR)

    return bench


def equalize(**parameters: object) -> dict[str, pb.CrossLayerEqualization]:
    return {"cross_layer_equalization": pb.CrossLayerEqualization(**parameters)}


def test_scaling_keeps_the_function_and_matches_the_ranges_of_pairs(make: Make) -> None:
    bench = make()

    findings = bench.run(**equalize(high_bias_absorption=NEVER))

    assert findings.values["folded_batch_norms"] == 7
    assert findings.values["equalized_layers"] == 6
    assert findings.values["float_sqnr_db_after_scaling"] > 80
    assert "float_sqnr_db_after_absorption" not in findings.values
    layers = findings.data["layers"]
    depthwise = [layer for layer in layers if len(layer["before"]) == 24][1]  # type: ignore[index]
    spread = {when: np.ptp(np.log(np.ptp(depthwise[when], axis=1))) for when in ("before", "after")}
    assert spread["after"] < 0.7 * spread["before"]


def test_ranges_carry_the_names_that_layers_have_after_calibration(make: Make) -> None:
    bench = make()
    findings = bench.run(**equalize(high_bias_absorption=NEVER))
    bench.run(calibrate=pb.Calibrate())

    names = [layer.name for layer in bench.model.quantized_model().layers()]

    assert [layer["layer"] for layer in findings.data["layers"]] == names  # type: ignore[index]


def test_scaling_pays_under_weights_of_one_scale(make: Make) -> None:
    naive, equalized = make(), make()
    naive.run(fold_batch_norms=pb.FoldBatchNorms())
    naive.run(calibrate=pb.Calibrate())

    equalized.run(**equalize())
    equalized.run(calibrate=pb.Calibrate())

    assert equalized.sqnr_db() > naive.sqnr_db() + 2


def test_relu6_keeps_layers_apart_until_it_is_replaced(make: Make) -> None:
    bench = make(relu6=True)

    with pytest.raises(NotApplicable, match="unless replace_relu6 is set"):
        bench.run(**equalize())

    findings = bench.run(**equalize(replace_relu6=True, high_bias_absorption=NEVER))

    assert (findings.values["replaced_relu6"], findings.values["equalized_layers"]) == (5, 6)
    lost = findings.values["float_sqnr_db_after_relu6_replacement"]
    assert 0 < lost < 60
    assert findings.values["float_sqnr_db_after_scaling"] == pytest.approx(lost, abs=0.01)
    assert bench.reasons() == ["RELU6_REPLACED"]


def test_replacing_alone_scales_nothing(make: Make) -> None:
    findings = make(relu6=True).run(**equalize(replace_relu6=True, scaling=False))

    assert findings.values["equalized_layers"] == 0
    assert findings.summary == "5 ReLU6 replaced by ReLU"


def test_a_step_that_may_do_nothing_is_refused(make: Make) -> None:
    with pytest.raises(NotApplicable, match="neither a ReLU6 to replace nor a high bias"):
        make().run(**equalize(scaling=False))


@pytest.mark.parametrize("seed", [0, 1])
def test_high_biases_are_absorbed_where_that_measures_better(make: Make, seed: int) -> None:
    bench = make(seed=seed)

    values = bench.run(**equalize()).values

    without = values["quantized_sqnr_db_without_absorption"]
    pays = values["quantized_sqnr_db_with_absorption"] > without
    assert (values["absorbed_layers"] > 0) == pays
    assert ("float_sqnr_db_after_absorption" in values) == pays


def test_absorption_that_is_asked_for_is_done_and_measured(make: Make) -> None:
    values = make().run(**equalize(high_bias_absorption=ALWAYS)).values

    assert values["absorbed_layers"] > 0
    assert values["float_sqnr_db_after_absorption"] < values["float_sqnr_db_after_scaling"]


def test_without_samples_nothing_is_absorbed_and_the_result_says_so(make: Make) -> None:
    bench = make()
    context = bench.context()
    context.judge = context.calibration = context.evaluation = None

    findings = bench.run_in(context, **equalize())

    assert findings.values["absorbed_layers"] == 0
    assert "float_sqnr_db_after_scaling" not in findings.values
    assert bench.reasons() == ["ABSORPTION_NOT_MEASURED"]


def test_without_recorded_outputs_the_model_is_compared_with_itself(make: Make) -> None:
    bench = make()
    context = bench.context()
    context.judge = None

    findings = bench.run_in(context, **equalize(high_bias_absorption=NEVER))

    assert findings.values["float_sqnr_db_after_scaling"] > 80


def test_ranges_are_read_by_output_channel_whatever_the_operator() -> None:
    b = zoo.Builder(17)
    b.constant("conv.weight", np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1))
    b.constant("up.weight", np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1))
    b.constant("gemm.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    x = b.add("Conv", ["image", "conv.weight"], "conv", name="conv")
    x = b.add("ConvTranspose", [x, "up.weight"], "up", name="up")
    x = b.add("Flatten", [x], "flat")
    b.add("Gemm", [x, "gemm.weight"], "out", name="gemm")
    model = b.model([zoo.tensor("image", ["N", 2, 1, 1])], [zoo.tensor("out", ["N", 3])])

    ranges = weight_ranges(model, modules=False)

    assert ranges["conv"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert ranges["up"].tolist() == [[0, 4], [1, 5]]
    assert ranges["gemm"].tolist() == [[0, 3], [1, 4], [2, 5]]
