"""One file a technique. Imported by workers alone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.techniques.base import Findings, NotApplicable, Technique
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.techniques.cross_layer_equalization import CrossLayerEqualization
from lighten_service.techniques.fold_batch_norms import FoldBatchNorms
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel

__all__ = ["TECHNIQUES", "Findings", "NotApplicable", "Technique", "run_step"]

# By the name of the field in `Step.technique`.
TECHNIQUES: Final[Mapping[str, Technique[Any]]] = MappingProxyType(
    {
        "fold_batch_norms": FoldBatchNorms(),
        "cross_layer_equalization": CrossLayerEqualization(),
        "calibrate": Calibrate(),
    }
)


def run_step(context: StepContext, model: WorkingModel, step: pb.Step) -> Findings:
    """Run the technique of a step on the model, in place.

    Raises:
        InvalidArgument: MISSING_TECHNIQUE, the step holds none.
        NotApplicable: the technique finds nothing in this model that it can change.
        LightenError: the model or the data are at fault.
        Cancelled: the job was cancelled.
    """
    name = step.WhichOneof("technique")
    if name is None:
        raise InvalidArgument(
            "MISSING_TECHNIQUE", f"step {step.id!r} names no technique", field="plan.steps"
        )
    return TECHNIQUES[name].run(context, model, getattr(step, name))
