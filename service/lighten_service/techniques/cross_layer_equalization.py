"""Cross-layer equalization."""

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel


class CrossLayerEqualization:
    """Matches the weight ranges of consecutive layers.

    AIMET joins scaling with high-bias absorption, which changes the float function a little: the
    step's report measures it.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.CrossLayerEqualization
    ) -> Findings:
        context.check()
        found = model.equalize(replace_relu6=parameters.replace_relu6)
        layers, replaced = int(found["equalized_layers"]), int(found["replaced_relu6"])
        # A model whose ReLU6 are gone has changed, so the step was not left out.
        if not layers and not replaced:
            raise NotApplicable(_reason(parameters))
        summary = f"{layers} layers equalized"
        if replaced:
            summary += f", {replaced} ReLU6 replaced by ReLU"
            context.warn(
                "RELU6_REPLACED",
                f"{replaced} ReLU6 became ReLU, which changes the float function wherever an "
                "activation passes 6; compare the metrics of this step with FP32",
            )
        return Findings(summary, found)


def _reason(parameters: pb.CrossLayerEqualization) -> str:
    reason = "no two convolutions follow each other with at most a ReLU between them"
    if not parameters.replace_relu6:
        reason += "; ReLU6 keeps layers apart unless replace_relu6 is set"
    return reason
