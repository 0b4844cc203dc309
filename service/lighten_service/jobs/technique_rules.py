"""Rules between the parameters of a technique, and between them and the plan's types."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.resolve import with_defaults
from lighten_service.jobs.support import BLOCKWISE, WIDE_TYPES_OPSET, type_support
from lighten_service.jobs.widths import INTEGER_BITS, next_wider

# The spec as the caller sent it, the technique's message, its path.
Check = Callable[[pb.JobSpec, Any, str], Iterator[Violation]]

_WEIGHTS = "plan.quantization.weights"
_GRANULARITY = "plan.quantization.weight_granularity"


def check_parameters(spec: pb.JobSpec, step: pb.Step, path: str) -> Iterator[Violation]:
    """Yield what is wrong with the parameters of a step; ``path`` is that of its technique."""
    name = step.WhichOneof("technique")
    if name is not None and name in _CHECKS:
        yield from _CHECKS[name](spec, getattr(step, name), path)


def check_opset(
    outputs: pb.Outputs, types: Collection[pb.DataType.ValueType]
) -> Iterator[Violation]:
    """Yield what is wrong with the opset, if some layers get these types."""
    wide = set(types) - {pb.DATA_TYPE_INT8}
    qdq = outputs.qdq_onnx or not outputs.HasField("qdq_onnx")
    if wide and qdq and outputs.HasField("opset") and outputs.opset < WIDE_TYPES_OPSET:
        yield Violation(
            "outputs.opset",
            f"must be at least {WIDE_TYPES_OPSET} for {_name(min(wide))}, and is {outputs.opset}",
        )


def check_selector(select: pb.LayerSelector, path: str) -> Iterator[Violation]:
    """Yield what is wrong with a selector that was set."""
    if not select.layers and not select.op_types:
        yield Violation(path, "selects nothing: set layers or op_types, or leave it out")


def _calibrate(_: pb.JobSpec, calibrate: pb.Calibrate, path: str) -> Iterator[Violation]:
    if calibrate.HasField("percentile") and calibrate.scheme != pb.RANGE_SCHEME_PERCENTILE:
        yield Violation(
            f"{path}.percentile",
            "belongs to scheme RANGE_SCHEME_PERCENTILE; set that, or leave it out",
        )
    if calibrate.HasField("reach") and calibrate.scheme != pb.RANGE_SCHEME_MEAN_MIN_MAX:
        yield Violation(
            f"{path}.reach",
            "belongs to scheme RANGE_SCHEME_MEAN_MIN_MAX; set that, or leave it out",
        )


def _equalization(
    _: pb.JobSpec, equalization: pb.CrossLayerEqualization, path: str
) -> Iterator[Violation]:
    if not equalization.HasField("scaling") or equalization.scaling:
        return
    if equalization.high_bias_absorption > pb.HIGH_BIAS_ABSORPTION_NEVER:
        yield Violation(
            f"{path}.high_bias_absorption",
            "needs scaled pairs: set scaling to true, or this to HIGH_BIAS_ABSORPTION_NEVER",
        )
    elif not equalization.replace_relu6:
        yield Violation(path, "has nothing left to do: scaling and replace_relu6 are both false")


def _ada_round(spec: pb.JobSpec, parameters: pb.AdaRound, path: str) -> Iterator[Violation]:
    yield from _layer_grids(spec.plan.quantization, "ada_round")
    yield from _layers(parameters, path)
    filled = with_defaults(parameters)
    start, end = filled.beta_start, filled.beta_end
    if start < end:
        field = "beta_start" if parameters.HasField("beta_start") else "beta_end"
        yield Violation(
            f"{path}.{field}",
            f"beta_start must be at least beta_end, and they are {start:g} and {end:g}",
        )


def _sequential_mse(
    spec: pb.JobSpec, parameters: pb.SequentialMse, path: str
) -> Iterator[Violation]:
    yield from _layer_grids(spec.plan.quantization, "sequential_mse")
    yield from _layers(parameters, path)


def _bias_correction(
    _: pb.JobSpec, parameters: pb.BiasCorrection, path: str
) -> Iterator[Violation]:
    analytic = parameters.method == pb.BIAS_CORRECTION_METHOD_ANALYTIC
    if analytic and parameters.HasField("max_samples"):
        yield Violation(
            f"{path}.max_samples",
            "means nothing for BIAS_CORRECTION_METHOD_ANALYTIC, which reads no data; leave it out",
        )


def _reestimate(spec: pb.JobSpec, _: pb.ReestimateBatchNorms, __: str) -> Iterator[Violation]:
    yield from _layer_grids(spec.plan.quantization, "reestimate_batch_norms")
    if spec.plan.quantization.weight_granularity == pb.GRANULARITY_PER_TENSOR:
        yield Violation(
            _GRANULARITY,
            "reestimate_batch_norms needs a scale for each channel: use GRANULARITY_PER_CHANNEL, "
            "or remove the step",
        )


def _mixed_precision(
    spec: pb.JobSpec, parameters: pb.MixedPrecision, path: str
) -> Iterator[Violation]:
    if parameters.WhichOneof("target") is None:
        yield Violation(path, "needs a target: set min_sqnr_db, max_disagreement or max_bops_ratio")
    if parameters.WhichOneof("target") == "max_bops_ratio" and parameters.max_bops_ratio == 1:
        yield Violation(f"{path}.max_bops_ratio", "must be above 1: at 1 no layer may be wider")
    wider = set()
    widest = {}
    for name in ("weights", "activations"):
        base = getattr(spec.plan.quantization, name) or pb.DATA_TYPE_INT8
        chosen = getattr(parameters, name) or next_wider(base) or base
        if base not in INTEGER_BITS:
            yield Violation(
                f"plan.quantization.{name}",
                f"mixed_precision widens integer types, and {_name(base)} is none",
            )
            return
        if INTEGER_BITS.get(chosen, 0) < INTEGER_BITS[base]:
            yield Violation(
                f"{path}.{name}", f"must be an integer type wider than the plan's {_name(base)}"
            )
            return
        wider |= {chosen} - {base}
        widest[name] = chosen
    granularity = spec.plan.quantization.weight_granularity
    if granularity in BLOCKWISE and not has_blocks(widest["weights"], granularity):
        yield Violation(
            f"{path}.weights",
            f"{_name(widest['weights'])} weights do not work with "
            f"{pb.Granularity.Name(granularity)}: set the plan's own type here, so that "
            "activations alone are widened, or choose another granularity",
        )
    if not wider:
        yield Violation(path, "has no wider type to give, neither to weights nor to activations")
    yield from check_opset(spec.outputs, wider)


def has_blocks(weights: pb.DataType.ValueType, granularity: pb.Granularity.ValueType) -> bool:
    """Say whether weights of a type can have a blockwise granularity."""
    return any(
        granularity in item.granularities for item in type_support() if item.weights == weights
    )


def _layer_grids(quantization: pb.QuantizationConfig, technique: str) -> Iterator[Violation]:
    """Check that weights will have the grids that rounding techniques work on."""
    weights = quantization.weights or pb.DATA_TYPE_INT8
    if weights not in INTEGER_BITS:
        yield Violation(
            _WEIGHTS, f"{technique} needs an integer type, and {_name(weights)} is none"
        )
    if quantization.weight_granularity in BLOCKWISE:
        name = pb.Granularity.Name(quantization.weight_granularity)
        yield Violation(
            _GRANULARITY,
            f"{technique} needs a scale for each tensor or channel, which {name} does not give",
        )


def _layers(parameters: pb.AdaRound | pb.SequentialMse, path: str) -> Iterator[Violation]:
    if parameters.HasField("layers"):
        yield from check_selector(parameters.layers, f"{path}.layers")


def _name(data_type: pb.DataType.ValueType) -> str:
    return pb.DataType.Name(data_type)


_CHECKS: Final[Mapping[str, Check]] = {
    "calibrate": _calibrate,
    "cross_layer_equalization": _equalization,
    "ada_round": _ada_round,
    "sequential_mse": _sequential_mse,
    "bias_correction": _bias_correction,
    "reestimate_batch_norms": _reestimate,
    "mixed_precision": _mixed_precision,
}
