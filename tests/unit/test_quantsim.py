"""The effective simulator configuration, for both engines."""

import json
from pathlib import Path

import pytest

from lighten import v1 as pb
from lighten_service.jobs import support
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.resolve import with_defaults
from lighten_service.worker import quantsim

ENGINES = [pb.ENGINE_TORCH, pb.ENGINE_ONNX]


def effective(engine: pb.Engine.ValueType = pb.ENGINE_TORCH, **fields: object) -> dict:
    return quantsim.effective_config(pb.QuantizationConfig(**fields), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["", *quantsim.hardware_configs()])
def test_every_name_has_a_packaged_file_in_both_engines(
    name: str, engine: pb.Engine.ValueType, tmp_path: Path
) -> None:
    path = quantsim.config_file(pb.QuantizationConfig(hardware_config=name), tmp_path, engine)

    config = json.loads(path.read_text())
    assert path.parent == tmp_path
    assert {"defaults", "params", "op_type", "supergroups", "model_input"} <= set(config)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="htp_v73") as caught:
        effective(hardware_config="../default_config")

    assert caught.value.reason == "UNKNOWN_HARDWARE_CONFIG"
    assert caught.value.field == "plan.quantization.hardware_config"


def test_granularity_overrides_what_the_hardware_says() -> None:
    tensor = effective(hardware_config="htp_v73", weight_granularity=pb.GRANULARITY_PER_TENSOR)
    channel = effective(hardware_config="enpu_v7", weight_granularity=pb.GRANULARITY_PER_CHANNEL)

    assert not any("per_channel_quantization" in rules for rules in tensor["op_type"].values())
    assert channel["op_type"]["Conv"]["per_channel_quantization"] == "True"
    assert channel["defaults"]["per_channel_quantization"] == "False"


def test_symmetry_overrides_reach_exceptions_too() -> None:
    config = effective(
        hardware_config="htp_v73",
        weight_symmetry=pb.SYMMETRY_SYMMETRIC,
        activation_symmetry=pb.SYMMETRY_SYMMETRIC,
    )

    assert config["defaults"]["ops"]["is_symmetric"] == "True"
    assert config["op_type"]["LayerNormalization"]["params"]["weight"]["is_symmetric"] == "True"


def test_without_overrides_the_hardware_config_stays_as_packaged() -> None:
    config = effective(hardware_config="htp_v73")

    assert config["op_type"]["Sigmoid"]["encoding_constraints"] == {"min": 0.0, "max": 1.0}
    assert config["op_type"]["Relu"]["encoding_constraints"] == {"min": 0.0}
    assert config["op_type"]["LayerNormalization"]["params"]["weight"]["is_symmetric"] == "False"


@pytest.mark.parametrize(
    ("type_", "bits"),
    [(pb.DATA_TYPE_INT4, 4), (pb.DATA_TYPE_INT8, 8), (pb.DATA_TYPE_INT16, 16)],
)
def test_softmax_and_sigmoid_lie_on_the_grid_that_kernels_assume(
    type_: pb.DataType.ValueType, bits: int
) -> None:
    config = effective(activations=type_)

    for op in ("Softmax", "Sigmoid"):
        bounds = config["op_type"][op]["encoding_constraints"]
        assert (bounds["max"] - bounds["min"]) / (2**bits - 1) == 2.0**-bits


@pytest.mark.parametrize("name", ["", "enpu_v6", "htp_v73"])
def test_symmetric_grids_have_no_one_sided_ranges(name: str) -> None:
    config = effective(hardware_config=name, activation_symmetry=pb.SYMMETRY_SYMMETRIC)

    for rules in config["op_type"].values():
        bounds = rules.get("encoding_constraints")
        assert bounds is None or bounds["min"] == -bounds["max"]


def test_widths_and_schemes() -> None:
    config = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4)

    assert (quantsim.weight_bits(config), quantsim.activation_bits(config)) == (4, 8)
    assert quantsim.scheme_name(pb.RANGE_SCHEME_SQNR) == "tf_enhanced"
    assert quantsim.percentile_value(pb.Calibrate()) is None
    percentile = pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE, percentile=99.0)
    assert quantsim.percentile_value(percentile) == 99.0
    assert quantsim.percentile_value(with_defaults(percentile)) == 99.0
    percentile.ClearField("percentile")
    assert quantsim.percentile_value(with_defaults(percentile)) == 99.99


def test_the_control_plane_lists_the_same_configurations() -> None:
    assert set(support.HARDWARE_CONFIGS) == set(quantsim.hardware_configs())
