"""Cross-layer equalization."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.fidelity import required_calibration, sqnr_to_float
from lighten_service.worker.context import StepContext
from lighten_service.worker.graphs.weight_ranges import Ranges, weight_ranges
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.samples import Head

FORMAT_VERSION = 1
# Samples for each figure, and for the ranges of the two candidates of absorption.
_SAMPLES = 32
_MIN_MAX = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)


class CrossLayerEqualization:
    """Matches the weight ranges of consecutive layers, in three parts.

    Scaling alone leaves the float function as it is; what each part costs is measured.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.CrossLayerEqualization
    ) -> Findings:
        context.check()
        with sqnr_to_float(context, model, _SAMPLES) as sqnr_db:
            parts = _Parts(context, model, sqnr_db)
            folded = model.fold_batch_norms()
            before = _ranges(model)
            replaced = parts.replace_relu6() if parameters.replace_relu6 else 0
            scaled = parts.scale() if parameters.scaling else 0
            absorbed = parts.absorb(parameters.high_bias_absorption)
        # A model whose ReLU6 are gone has changed, so the step was not left out.
        if not (replaced or scaled or absorbed):
            raise NotApplicable(_reason(parameters))
        counts = {
            "folded_batch_norms": folded,
            "replaced_relu6": replaced,
            "equalized_layers": scaled,
            "absorbed_layers": absorbed,
        }
        layers = _rows(before, _ranges(model))
        return Findings(
            _summary(replaced, scaled, absorbed),
            counts | parts.figures,
            analyses.Equalization(format_version=FORMAT_VERSION, layers=layers),
        )


@dataclass
class _Parts:
    """The parts of the technique; ``figures`` has what was measured after each that changed
    anything, in dB."""

    context: StepContext
    model: WorkingModel
    # None without samples.
    sqnr_db: Callable[[WorkingModel], float] | None
    figures: dict[str, float] = field(default_factory=dict)

    def replace_relu6(self) -> int:
        replaced = self.model.replace_relu6()
        if replaced:
            self._measure("float_sqnr_db_after_relu6_replacement")
            self.context.warn(
                "RELU6_REPLACED",
                f"{replaced} ReLU6 became ReLU, which changes the float function wherever an "
                "activation passes 6; the findings of the step say by how much",
            )
        return replaced

    def scale(self) -> int:
        scaled = self.model.equalize()
        if scaled:
            self._measure("float_sqnr_db_after_scaling")
        return scaled

    def absorb(self, when: pb.HighBiasAbsorption.ValueType) -> int:
        always = when == pb.HIGH_BIAS_ABSORPTION_ALWAYS
        if when == pb.HIGH_BIAS_ABSORPTION_NEVER or not (always or self._absorption_pays()):
            return 0
        absorbed = self.model.absorb_high_biases()
        if absorbed:
            self._measure("float_sqnr_db_after_absorption")
        else:
            self.context.warn(
                "NOTHING_ABSORBED",
                "no bias is high in a layer with a folded batch norm that was scaled with its "
                "successor",
            )
        return absorbed

    def _absorption_pays(self) -> bool:
        """Compare copies with and without it, quantized with min-max ranges."""
        with closing(self.model.copy()) as absorbing:
            if not absorbing.absorb_high_biases():
                return False
            if self.context.calibration is None or self.sqnr_db is None:
                self.context.warn(
                    "ABSORPTION_NOT_MEASURED",
                    "high biases were not absorbed: whether that pays is measured on calibration "
                    "samples, and there are none; set calibration",
                )
                return False
            self._calibrate(absorbing)
            absorbed = self.sqnr_db(absorbing)
        with closing(self.model.copy()) as plain:
            self._calibrate(plain)
            left = self.sqnr_db(plain)
        self.figures["quantized_sqnr_db_with_absorption"] = absorbed
        self.figures["quantized_sqnr_db_without_absorption"] = left
        return absorbed > left

    def _calibrate(self, candidate: WorkingModel) -> None:
        samples = Head(required_calibration(self.context), _SAMPLES)
        Calibrate().run(replace(self.context, calibration=samples), candidate, _MIN_MAX)

    def _measure(self, name: str) -> None:
        self.context.check()
        if self.sqnr_db is not None:
            self.figures[name] = self.sqnr_db(self.model)


def _summary(replaced: int, scaled: int, absorbed: int) -> str:
    parts = (
        (replaced, f"{replaced} ReLU6 replaced by ReLU"),
        (scaled, f"{scaled} layers equalized"),
        (absorbed, f"high biases of {absorbed} layers absorbed"),
    )
    return ", ".join(text for count, text in parts if count)


def _reason(parameters: pb.CrossLayerEqualization) -> str:
    if not parameters.scaling:
        return "neither a ReLU6 to replace nor a high bias of a scaled pair was found"
    reason = "no two convolutions follow each other with at most a ReLU between them"
    if not parameters.replace_relu6:
        reason += "; ReLU6 keeps layers apart unless replace_relu6 is set"
    return reason


def _ranges(model: WorkingModel) -> dict[str, Ranges]:
    return weight_ranges(model.graph(), modules=model.engine == pb.ENGINE_TORCH)


def _rows(
    before: Mapping[str, Ranges], after: Mapping[str, Ranges]
) -> list[analyses.EqualizedLayer]:
    return [
        {
            "layer": layer,
            "before": analyses.rounded(ranges.tolist()),
            "after": analyses.rounded(scaled.tolist()),
        }
        # By position: exporters number weights that no module gives its name.
        for (layer, ranges), scaled in zip(before.items(), after.values(), strict=True)
    ]
