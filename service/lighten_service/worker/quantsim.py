"""From `QuantizationConfig` to what AIMET's quantization simulators take, for both engines.

AIMET decides which tensors are quantized, and on what kind of grid, from a JSON configuration.
Its two packages carry the same files; one is chosen by name from a fixed table (AIMET would open
any path), and what the spec sets explicitly is written over it.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

_DEFAULT_CONFIG: Final = "default_config_per_channel.json"
_HARDWARE_CONFIGS: Final = {
    "enpu_v6": "enpu_quantsim_config_v6.json",
    "enpu_v7": "enpu_quantsim_config_v7.json",
    "htp_v66": "htp_quantsim_config_v66.json",
    "htp_v68": "htp_quantsim_config_v68.json",
    "htp_v69": "htp_quantsim_config_v69.json",
    "htp_v73": "htp_quantsim_config_v73.json",
    "htp_v75": "htp_quantsim_config_v75.json",
    "htp_v79": "htp_quantsim_config_v79.json",
    "htp_v81": "htp_quantsim_config_v81.json",
    "htp_v85": "htp_quantsim_config_v85.json",
}
_PACKAGES: Final = {pb.ENGINE_TORCH: "aimet_torch", pb.ENGINE_ONNX: "aimet_onnx"}
_BITS: Final = {
    pb.DATA_TYPE_INT4: 4,
    pb.DATA_TYPE_INT8: 8,
    pb.DATA_TYPE_INT16: 16,
    pb.DATA_TYPE_FLOAT16: 16,
    pb.DATA_TYPE_FLOAT8_E4M3: 8,
}
_INTEGERS: Final = frozenset({pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16})
_SCHEMES: Final = {
    pb.RANGE_SCHEME_UNSPECIFIED: "tf",
    pb.RANGE_SCHEME_MIN_MAX: "tf",
    pb.RANGE_SCHEME_SQNR: "tf_enhanced",
    # Of weights; the engines average over samples themselves.
    pb.RANGE_SCHEME_MEAN_MIN_MAX: "tf",
    pb.RANGE_SCHEME_PERCENTILE: "percentile",
}
# Operators with weights that AIMET can give one scale a channel.
_PER_CHANNEL_OPS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu")
# Outputs between 0 and 1, which runtimes compute on the fixed grid 1/2**bits.
_UNIT_INTERVAL_OPS: Final = ("Sigmoid", "Softmax")

Config = dict[str, Any]


def hardware_configs() -> tuple[str, ...]:
    """Return the names that `QuantizationConfig.hardware_config` may have, sorted."""
    return tuple(sorted(_HARDWARE_CONFIGS))


def weight_bits(quantization: pb.QuantizationConfig) -> int:
    """Return the width of weights: 4, 8 or 16 bits."""
    return _BITS[quantization.weights or pb.DATA_TYPE_INT8]


def activation_bits(quantization: pb.QuantizationConfig) -> int:
    """Return the width of activations: 4, 8 or 16 bits."""
    return _BITS[quantization.activations or pb.DATA_TYPE_INT8]


def integer_activations(quantization: pb.QuantizationConfig) -> bool:
    """Say whether activations stand on integer grids."""
    return (quantization.activations or pb.DATA_TYPE_INT8) in _INTEGERS


def fuses(quantization: pb.QuantizationConfig) -> bool:
    """Say whether tensors inside an operator and its activation stay float."""
    if quantization.HasField("fuse_activations"):
        return quantization.fuse_activations
    # A hardware configuration says for itself what its target fuses.
    return not quantization.hardware_config


def scheme_name(scheme: pb.RangeScheme.ValueType) -> str:
    """Return AIMET's name of a range scheme, the same in both engines."""
    return _SCHEMES[scheme]


def percentile_value(parameters: pb.Calibrate) -> float | None:
    """Return the percentile to set, in percent, or None for the other schemes."""
    if parameters.scheme != pb.RANGE_SCHEME_PERCENTILE:
        return None
    return parameters.percentile


def mean_reach(parameters: pb.Calibrate) -> float | None:
    """Return `Calibrate.reach`, 0 to 1, or None for the schemes that are AIMET's."""
    if parameters.scheme != pb.RANGE_SCHEME_MEAN_MIN_MAX:
        return None
    return parameters.reach


def config_file(
    quantization: pb.QuantizationConfig, scratch: Path, engine: pb.Engine.ValueType
) -> Path:
    """Write the effective simulator configuration and return its path, below `scratch`.

    Raises:
        InvalidArgument: UNKNOWN_HARDWARE_CONFIG.
    """
    config = effective_config(quantization, engine)
    path = scratch / "quantsim_config.json"
    path.write_text(json.dumps(config, indent=2))
    return path


def effective_config(quantization: pb.QuantizationConfig, engine: pb.Engine.ValueType) -> Config:
    """Return the packaged configuration with what the spec sets written over it."""
    config: Config = json.loads(_packaged(quantization.hardware_config, engine).read_text())
    if quantization.weight_granularity != pb.GRANULARITY_UNSPECIFIED:
        _set_granularity(config, quantization.weight_granularity != pb.GRANULARITY_PER_TENSOR)
    if quantization.weight_symmetry != pb.SYMMETRY_UNSPECIFIED:
        _set_weight_symmetry(config, quantization.weight_symmetry == pb.SYMMETRY_SYMMETRIC)
    if quantization.activation_symmetry != pb.SYMMETRY_UNSPECIFIED:
        _set_activation_symmetry(config, quantization.activation_symmetry == pb.SYMMETRY_SYMMETRIC)
    if not quantization.hardware_config and integer_activations(quantization):
        _set_unit_interval(config, activation_bits(quantization))
    if config["defaults"]["ops"].get("is_symmetric") == "True":
        _mirror_constraints(config)
    return config


def _packaged(name: str, engine: pb.Engine.ValueType) -> Path:
    file = _HARDWARE_CONFIGS.get(name) if name else _DEFAULT_CONFIG
    if file is None:
        raise InvalidArgument(
            "UNKNOWN_HARDWARE_CONFIG",
            f"there is no hardware configuration {name!r}; use one of "
            f"{', '.join(hardware_configs())}, or leave it empty",
            field="plan.quantization.hardware_config",
        )
    package = _PACKAGES[engine]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return Path(spec.submodule_search_locations[0], "common", "quantsim_config", file)


def _set_granularity(config: Config, per_channel: bool) -> None:
    # The default stays per tensor: AIMET's per-channel configurations name the operators that
    # have a channel axis, and a default of per channel would catch normalization layers too.
    config["defaults"]["per_channel_quantization"] = "False"
    for rules in config["op_type"].values():
        rules.pop("per_channel_quantization", None)
    if per_channel:
        for op in _PER_CHANNEL_OPS:
            config["op_type"].setdefault(op, {})["per_channel_quantization"] = "True"


def _set_weight_symmetry(config: Config, symmetric: bool) -> None:
    config["defaults"]["params"]["is_symmetric"] = str(symmetric)
    exceptions = [rules.get("params", {}) for rules in config["op_type"].values()]
    for params in (config["params"], *exceptions):
        for rules in params.values():
            if "is_symmetric" in rules:
                rules["is_symmetric"] = str(symmetric)
    # ONNX has no unsigned 32-bit integers to store biases of an asymmetric grid in.
    config["params"].setdefault("bias", {})["is_symmetric"] = "True"


def _set_activation_symmetry(config: Config, symmetric: bool) -> None:
    config["defaults"]["ops"]["is_symmetric"] = str(symmetric)
    for rules in config["op_type"].values():
        if "is_symmetric" in rules:
            rules["is_symmetric"] = str(symmetric)


def _set_unit_interval(config: Config, bits: int) -> None:
    """Put outputs between 0 and 1 on the grid that quantized kernels assume.

    ONNX Runtime's QLinearSoftmax returned all zeros on a calibrated scale. A hardware
    configuration says for itself what its kernels assume.
    """
    bounds = {"min": 0.0, "max": 1.0 - 2.0**-bits}
    for op in _UNIT_INTERVAL_OPS:
        config["op_type"].setdefault(op, {})["encoding_constraints"] = dict(bounds)


def _mirror_constraints(config: Config) -> None:
    """Make fixed ranges fit symmetric grids.

    AIMET centres the span of a one-sided range: outputs between 0 and 1 would be cut at 0.5, and
    those of a ReLU at half of their maximum.
    """
    for rules in config["op_type"].values():
        bounds = rules.get("encoding_constraints", {})
        if len(bounds) == 2:
            limit = max(abs(bounds["min"]), abs(bounds["max"]))
            rules["encoding_constraints"] = {"min": -limit, "max": limit}
        else:
            rules.pop("encoding_constraints", None)
