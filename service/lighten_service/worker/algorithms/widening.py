"""Layers given wider types, as many of the most sensitive as a target needs or allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lighten_service.worker.algorithms.fidelity import tune
from lighten_service.worker.algorithms.recalibration import recalibrate
from lighten_service.worker.algorithms.sensitivity import LayerSensitivity
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Evaluation
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import Quantizer


@dataclass(frozen=True, slots=True)
class WiderTypes:
    """Widths to give, in bits; None: quantizers of the kind stay as they are."""

    weights: int | None
    activations: int | None

    def bits(self, quantizer: Quantizer) -> int | None:
        """Return the width to give to a quantizer; None where it is as wide, or of floats."""
        wider = self.weights if quantizer.is_weight else self.activations
        if wider is None or quantizer.is_float or quantizer.bits >= wider:
            return None
        return wider


@dataclass
class Widening:
    """Tries numbers of widened layers. Figures are measured once for each number.

    ``layers``: those that can be widened, the most sensitive first. ``count``: how many of them
    are widened in the model as it is now.
    """

    context: StepContext
    model: WorkingModel
    layers: Sequence[LayerSensitivity]
    wider: WiderTypes
    calibration: Samples
    limit: int
    count: int = 0
    _measured: dict[int, Evaluation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._quantized = self.model.quantized_model()
        self._start = self._quantized.snapshot()
        self._bops = max(self.model.statistics().bops, 1)

    @property
    def evaluations(self) -> int:
        return len(self._measured)

    def widen(self, count: int) -> None:
        """Make the first ``count`` layers wider and choose the ranges of activations anew."""
        if count == self.count:
            return
        self._quantized.restore(self._start)
        self.count = count
        if count:
            for bits, names in self._names(count).items():
                self._quantized.set_types(names, bits)
            recalibrate(self.context, self._quantized, self.calibration)

    def measure(self, count: int) -> Evaluation:
        """Compare the model with ``count`` widened layers with FP32."""
        if count not in self._measured:
            self.widen(count)
            self._measured[count] = tune(self.context, self.model, self.limit)
        return self._measured[count]

    def bops_ratio(self) -> float:
        """Return the bit operations of the model as it is now, relative to those at first."""
        return self.model.statistics().bops / self._bops

    def best(self, figure: Callable[[Evaluation], float]) -> int:
        """Return the number with the highest figure of those measured, the smallest of equals."""
        return max(sorted(self._measured), key=lambda count: figure(self._measured[count]))

    def _names(self, count: int) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for layer in self.layers[:count]:
            for quantizer in layer.quantizers:
                bits = self.wider.bits(quantizer)
                if bits is not None:
                    names.setdefault(bits, []).append(quantizer.name)
        return names


def fewest(count: int, good_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 1 to ``count`` that is good enough, or None.

    Bisection: more is taken to be better. ``count`` is tried first.
    """
    if count < 1 or not good_enough(count):
        return None
    short, enough = 0, count
    while enough - short > 1:
        middle = (short + enough) // 2
        if good_enough(middle):
            enough = middle
        else:
            short = middle
    return enough
