"""Mixed precision."""

from collections.abc import Callable

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.widths import INTEGER_BITS, next_wider
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.fidelity import agreement, required_calibration, sqnr_db
from lighten_service.worker.algorithms.sensitivity import (
    LayerSensitivity,
    layer_sensitivities,
    most_sensitive_first,
)
from lighten_service.worker.algorithms.widening import Widening, WiderTypes, fewest
from lighten_service.worker.context import StepContext
from lighten_service.worker.evaluation import Evaluation
from lighten_service.worker.model import WorkingModel

FORMAT_VERSION = 1


class MixedPrecision:
    """Widens the layers that lose most when they alone are quantized, until a target is met.

    A layer's wider types are those of its weight and of its output.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.MixedPrecision
    ) -> Findings:
        calibration = required_calibration(context)
        limit = parameters.max_samples
        wider = _wider_types(context.quantization, parameters)
        found = most_sensitive_first(layer_sensitivities(context.part(0.0, 0.6), model, limit))
        layers = [layer for layer in found if any(map(wider.bits, layer.quantizers))]
        if not layers:
            raise NotApplicable(
                "every layer already has the wider types, or is not quantized to integers"
            )
        widening = Widening(context.part(0.6, 1.0), model, layers, wider, calibration, limit)
        before = widening.measure(0)
        widening.widen(_CHOICES[_target(parameters)](widening, parameters))
        after = widening.measure(widening.count)
        return Findings(
            _summary(widening, before, after),
            {
                "widened_layers": widening.count,
                "evaluations": len(found) + widening.evaluations,
                "sqnr_db_before": sqnr_db(before),
                "sqnr_db_after": sqnr_db(after),
                "bops_ratio": widening.bops_ratio(),
            },
            analyses.MixedPrecision(
                format_version=FORMAT_VERSION,
                samples=before.samples,
                layers=_rows(found, widening),
            ),
        )


def _target(parameters: pb.MixedPrecision) -> str:
    target = parameters.WhichOneof("target")
    if target is None:
        raise InvalidArgument(
            "MISSING_TARGET",
            "mixed precision needs a target: set min_sqnr_db, max_disagreement or max_bops_ratio",
            field="plan.steps.steps",
        )
    return target


def _wider_types(quantization: pb.QuantizationConfig, parameters: pb.MixedPrecision) -> WiderTypes:
    return WiderTypes(
        _bits(parameters.weights or next_wider(quantization.weights or pb.DATA_TYPE_INT8)),
        _bits(parameters.activations or next_wider(quantization.activations or pb.DATA_TYPE_INT8)),
    )


def _bits(data_type: pb.DataType.ValueType | None) -> int | None:
    if data_type is None:
        return None
    if data_type not in INTEGER_BITS:
        raise InvalidArgument(
            "UNSUPPORTED_TYPE",
            f"mixed precision gives wider integer types, and {pb.DataType.Name(data_type)} is none",
            field="plan.steps.steps",
        )
    return INTEGER_BITS[data_type]


def _to_sqnr(widening: Widening, parameters: pb.MixedPrecision) -> int:
    return _until(widening, sqnr_db, parameters.min_sqnr_db, "{:.1f} dB")


def _to_agreement(widening: Widening, parameters: pb.MixedPrecision) -> int:
    return _until(widening, agreement, 1 - parameters.max_disagreement, "{:.3f} agreement")


def _until(
    widening: Widening, figure: Callable[[Evaluation], float], target: float, unit: str
) -> int:
    """Return the smallest number of widened layers that meets a target, or the best one tried."""
    if figure(widening.measure(0)) >= target:
        return 0
    chosen = fewest(len(widening.layers), lambda count: figure(widening.measure(count)) >= target)
    if chosen is not None:
        return chosen
    best = widening.best(figure)
    widening.context.warn(
        "TARGET_MISSED",
        f"with every layer widened the model reaches {unit.format(figure(widening.measure(best)))} "
        f"and not {unit.format(target)} on calibration samples; {best} layers were widened, which "
        "is the best found: choose wider types or a lower target",
    )
    return best


def _to_operations(widening: Widening, parameters: pb.MixedPrecision) -> int:
    """Return how many layers fit into the bit operations that may be spent."""

    def too_many(count: int) -> bool:
        widening.widen(count)
        return widening.bops_ratio() > parameters.max_bops_ratio

    beyond = fewest(len(widening.layers), too_many)
    if beyond == 1:
        widening.widen(0)
        raise NotApplicable(
            f"widening {widening.layers[0].layer}, the most sensitive layer, takes more than "
            f"{parameters.max_bops_ratio:g} times the bit operations; raise max_bops_ratio"
        )
    return len(widening.layers) if beyond is None else beyond - 1


_CHOICES: dict[str, Callable[[Widening, pb.MixedPrecision], int]] = {
    "min_sqnr_db": _to_sqnr,
    "max_disagreement": _to_agreement,
    "max_bops_ratio": _to_operations,
}


def _summary(widening: Widening, before: Evaluation, after: Evaluation) -> str:
    return (
        f"{widening.count} of {len(widening.layers)} layers widened; "
        f"SQNR {sqnr_db(before):.1f} to {sqnr_db(after):.1f} dB on calibration samples"
    )


def _rows(found: tuple[LayerSensitivity, ...], widening: Widening) -> list[analyses.AllottedLayer]:
    widened = {layer.layer for layer in widening.layers[: widening.count]}
    return [_row(layer, widening.wider, layer.layer in widened) for layer in found]


def _row(layer: LayerSensitivity, wider: WiderTypes, widened: bool) -> analyses.AllottedLayer:
    row: analyses.AllottedLayer = {
        "layer": layer.layer,
        "op": layer.op,
        "alone_db": layer.sqnr_db,
        "widened": widened,
    }
    for quantizer in layer.quantizers:
        bits = (wider.bits(quantizer) if widened else None) or quantizer.bits
        row["weight_bits" if quantizer.is_weight else "activation_bits"] = bits
    return row
