"""One file a technique. Imported by workers alone."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.resolve import with_defaults
from lighten_service.techniques.activation_equalization import ActivationEqualization
from lighten_service.techniques.ada_round import AdaRound
from lighten_service.techniques.analyze_sensitivity import AnalyzeSensitivity
from lighten_service.techniques.base import Findings, NotApplicable, Technique
from lighten_service.techniques.bias_correction import BiasCorrection
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.techniques.cross_layer_equalization import CrossLayerEqualization
from lighten_service.techniques.fold_batch_norms import FoldBatchNorms
from lighten_service.techniques.mixed_precision import MixedPrecision
from lighten_service.techniques.reestimate_batch_norms import ReestimateBatchNorms
from lighten_service.techniques.sequential_mse import SequentialMse
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel

__all__ = ["TECHNIQUES", "Findings", "NotApplicable", "Technique", "run_step"]

# By the name of the field in `Step.technique`.
TECHNIQUES: Final[Mapping[str, Technique[Any]]] = MappingProxyType(
    {
        "fold_batch_norms": FoldBatchNorms(),
        "cross_layer_equalization": CrossLayerEqualization(),
        "activation_equalization": ActivationEqualization(),
        "calibrate": Calibrate(),
        "mixed_precision": MixedPrecision(),
        "ada_round": AdaRound(),
        "sequential_mse": SequentialMse(),
        "bias_correction": BiasCorrection(),
        "reestimate_batch_norms": ReestimateBatchNorms(),
        "analyze_sensitivity": AnalyzeSensitivity(),
    }
)


def run_step(context: StepContext, model: WorkingModel, step: pb.Step) -> Findings:
    """Run the technique of a step on the model, in place; absent parameters have their defaults.

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
    _seed(context)
    return TECHNIQUES[name].run(context, model, getattr(with_defaults(step), name))


def _seed(context: StepContext) -> None:
    """Let what a step draws from global generators depend on its seed, and not on what ran before
    it: AIMET draws from NumPy's."""
    seed = context.rng().getrandbits(32)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
