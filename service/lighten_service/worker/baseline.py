"""The columns that the optimized model is compared with: FP32 and naive INT8."""

from lighten import v1 as pb
from lighten_service.jobs.support import technique_of
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.worker.columns import Column, measure
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Reference
from lighten_service.worker.judge import TUNING_SAMPLES, Judge
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.samples import Head

FP32 = "baseline"
NAIVE = "naive"
# Phases whose techniques do what they do, whatever the outputs say.
_SETTLED = frozenset({pb.PHASE_FOLD, pb.PHASE_CALIBRATE})


def measure_fp32(context: StepContext, model: WorkingModel, samples: Samples) -> Column:
    """Evaluate the model as it came; its outputs are the reference of everything later."""
    column = measure(context, FP32, model.predict, model.statistics(), samples, reference=None)
    column.onnx = context.scratch / "fp32.onnx"
    model.export_float(column.onnx)
    return column


def chooses(plan: pb.Plan) -> bool:
    """Whether a plan has anything that compares alternatives with FP32 while it runs."""
    return plan.HasField("goal") or any(
        (technique := technique_of(step)) is not None and technique.info.phase not in _SETTLED
        for step in plan.steps.steps
    )


def record_judge(
    context: StepContext,
    model: WorkingModel,
    evaluation: Samples,
    calibration: Samples,
    fp32: Column,
) -> Judge:
    """Record the outputs of the FP32 model on calibration samples too."""
    head = Head(calibration, TUNING_SAMPLES)
    reference = Reference.record(
        model.predict,
        head,
        context.scratch / "outputs" / "calibration",
        on_batch=lambda done: context.progress(done, head.count, "samples"),
        label_field="calibration.data",
    )
    return Judge(evaluation, fp32.recorded, calibration, reference)


def measure_naive(
    context: StepContext, model: WorkingModel, samples: Samples, *, fp32: Column, qdq: bool
) -> Column:
    """Quantize a copy with min-max ranges and folded batch norms, nothing else, and evaluate it."""
    naive = model.copy()
    try:
        naive.fold_batch_norms()
        minmax = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
        Calibrate().run(context.part(0.0, 0.5), naive, minmax)
        column = measure(
            context.part(0.5, 1.0),
            NAIVE,
            naive.predict,
            naive.statistics(),
            samples,
            reference=fp32.recorded,
        )
        if qdq:
            column.onnx = context.scratch / "naive.qdq.onnx"
            naive.export_qdq(column.onnx)
        return column
    finally:
        naive.close()
