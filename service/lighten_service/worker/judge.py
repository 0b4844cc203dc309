"""How close a model is to FP32, for techniques and the guide that must choose."""

from collections.abc import Callable
from dataclasses import dataclass

from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Evaluation, Predict, Reference, evaluate
from lighten_service.worker.samples import Head

# Calibration samples whose FP32 outputs are kept.
TUNING_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Judge:
    """FP32 outputs of evaluation and calibration samples, recorded before anything changed.

    Choices are made on calibration samples, so that the evaluation stays unseen; only a goal that
    is about the evaluation's metric looks at that.
    """

    evaluation: Samples
    evaluation_reference: Reference
    calibration: Samples
    calibration_reference: Reference

    def evaluate(self, predict: Predict, on_batch: Callable[[int], None]) -> Evaluation:
        """Measure a model on all evaluation samples. ``on_batch`` may raise to stop."""
        return evaluate(
            predict, self.evaluation, reference=self.evaluation_reference, on_batch=on_batch
        )

    def tune(
        self, predict: Predict, on_batch: Callable[[int], None], *, limit: int = TUNING_SAMPLES
    ) -> Evaluation:
        """Measure a model on the first ``limit`` calibration samples, without labels."""
        return evaluate(
            predict,
            Head(self.calibration, min(limit, self.calibration_reference.count)),
            reference=self.calibration_reference,
            on_batch=on_batch,
        )
