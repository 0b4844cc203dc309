"""Whether weights or activations are at fault for what quantization loses."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lighten_service.worker.algorithms.fidelity import sqnr_db, tune
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import Quantizer

# Calibration samples of each pass.
TUNED = 64
# Operators that carry the multiply-accumulates stay quantized.
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """SQNR in dB against FP32 with weights alone and activations alone quantized."""

    weights_db: float
    activations_db: float

    @property
    def weights_share(self) -> float:
        """Share of the noise that comes from weights, 0 to 1."""
        weights, activations = (10 ** (-x / 10) for x in (self.weights_db, self.activations_db))
        return weights / (weights + activations)

    @property
    def sentence(self) -> str:
        """Return what was found, for a person."""
        share = self.weights_share
        fault = "weights" if share > 2 / 3 else "activations" if share < 1 / 3 else "both"
        return (
            f"With weights alone quantized the outputs are at {self.weights_db:.1f} dB, with "
            f"activations alone at {self.activations_db:.1f} dB: {fault} at fault."
        )


def diagnose(context: StepContext, model: WorkingModel) -> Diagnosis:
    """Measure a quantized model with one kind of quantizer at a time; it stays as it is."""
    quantizers = model.quantized_model().quantizers()
    return Diagnosis(
        *(
            _sqnr_with(context, model, [item for item in quantizers if item.is_weight == kind])
            for kind in (True, False)
        )
    )


def relief(context: StepContext, model: WorkingModel) -> Iterator[tuple[str, float]]:
    """Yield each type of light operator, with the dB that leaving its outputs in float gains.

    Costs one pass for each type, and one for all.
    """
    quantizers = model.quantized_model().quantizers()
    whole = _sqnr_with(context, model, quantizers)
    ops = dict.fromkeys(item.op for item in quantizers if item.op and not item.is_weight)
    for op in ops:
        if op not in _HEAVY:
            rest = [item for item in quantizers if item.op != op]
            yield op, _sqnr_with(context, model, rest) - whole


def _sqnr_with(
    context: StepContext, model: WorkingModel, quantizers: Collection[Quantizer]
) -> float:
    with model.quantized_model().only([item.name for item in quantizers]):
        return sqnr_db(tune(context, model, TUNED))
