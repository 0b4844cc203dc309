"""How close a model is to FP32 on calibration samples, as techniques ask it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Evaluation, Reference, evaluate
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.samples import Head


def required_calibration(context: StepContext) -> Samples:
    """Return the calibration samples.

    Raises:
        FailedPrecondition: MISSING_CALIBRATION_DATA.
    """
    if context.calibration is None:
        raise _missing_calibration()
    return context.calibration


def tune(context: StepContext, model: WorkingModel, limit: int) -> Evaluation:
    """Compare the model as it is now with FP32, on at most ``limit`` calibration samples.

    Raises:
        FailedPrecondition: MISSING_CALIBRATION_DATA, no FP32 outputs were recorded on any.
        Cancelled: the job shall stop; looked at after each batch.
    """
    if context.judge is None:
        raise _missing_calibration()
    return context.judge.tune(model.predict, lambda _: context.check(), limit=limit)


@contextmanager
def sqnr_to_float(
    context: StepContext, model: WorkingModel, limit: int
) -> Iterator[Callable[[WorkingModel], float] | None]:
    """Give a function that returns a model's SQNR in dB, on at most ``limit`` samples.

    Against the outputs that the job began with, on calibration samples. Where none were recorded,
    against those of ``model`` as it is now, on evaluation samples if there are no others. None
    without any samples.
    """
    samples = context.evaluation if context.calibration is None else context.calibration
    if context.judge is not None:
        yield lambda other: sqnr_db(tune(context, other, limit))
    elif samples is None:
        yield None
    else:
        with _sqnr_against(context, model, Head(samples, limit)) as of_other:
            yield of_other


def sqnr_between(
    context: StepContext, model: WorkingModel, other: WorkingModel, samples: Samples
) -> float:
    """Return the SQNR in dB of ``other`` against ``model``, both as they are now."""
    with _sqnr_against(context, model, samples) as of_other:
        return of_other(other)


@contextmanager
def _sqnr_against(
    context: StepContext, model: WorkingModel, samples: Samples
) -> Iterator[Callable[[WorkingModel], float]]:
    """Give a function that compares models with ``model`` as it is now, in dB."""

    def check(_: int) -> None:
        context.check()

    folder = context.scratch / "outputs" / context.stage.step_id
    recorded = Reference.record(model.predict, samples, folder, on_batch=check)
    try:
        yield lambda other: sqnr_db(
            evaluate(other.predict, samples, reference=recorded, on_batch=check)
        )
    finally:
        recorded.close()


def sqnr_db(evaluation: Evaluation) -> float:
    """Return the SQNR of the worst output in dB, between -200 and 200."""
    return min(output.sqnr_db for output in evaluation.outputs)


def agreement(evaluation: Evaluation) -> float:
    """Return the share of samples whose highest score is the class that FP32 gives.

    Raises:
        FailedPrecondition: NO_CLASS_SCORES, the first output has no class scores.
    """
    share = evaluation.value(pb.METRIC_AGREEMENT)
    if share is None:
        raise FailedPrecondition(
            "NO_CLASS_SCORES",
            "agreement needs class scores, shape (samples, classes), in the first output; set a "
            "target of SQNR",
            field="plan.steps.steps",
        )
    return share


def _missing_calibration() -> FailedPrecondition:
    return FailedPrecondition(
        "MISSING_CALIBRATION_DATA",
        "the step measures the model on calibration samples; set calibration",
        field="calibration",
    )
