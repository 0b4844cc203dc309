"""The trained network as a working model, quantized by the techniques of the pipeline."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.techniques import run_step
from lighten_service.worker.context import StepContext
from lighten_service.worker.engines.onnx_engine import OnnxModel, open_onnx_model
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.reporter import EventReporter
from tests.benchmarks.calibrations import Batches, Outbox
from tests.benchmarks.fashion.data import CALIBRATION_IMAGES, training_images
from tests.benchmarks.fashion.train import CHECKPOINT

_SEED = 0
_BATCH_SIZE = 64


def float_model(scratch: Path) -> OnnxModel:
    """Return the trained network, its batch norms folded and its layers equalized, as depthwise
    networks need with one scale a tensor."""
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    model = open_onnx_model(spec, CHECKPOINT, scratch=scratch, device="cpu", seed=_SEED)
    model.fold_batch_norms()
    model.equalize()
    return model


def quantized_model(scratch: Path, step: pb.Step | None) -> OnnxModel:
    """Return the network with 4-bit weights of one scale a tensor and 8-bit activations, calibrated
    and then changed by a step."""
    model = float_model(scratch)
    pixels = training_images().pixels[:CALIBRATION_IMAGES]
    context = StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="step"),
        reporter=EventReporter(Outbox()),  # type: ignore[arg-type]
        quantization=pb.QuantizationConfig(
            weights=pb.DATA_TYPE_INT4,
            activations=pb.DATA_TYPE_INT8,
            weight_granularity=pb.GRANULARITY_PER_TENSOR,
            fuse_activations=True,
        ),
        calibration=Batches([{"image": batch} for batch in _split(pixels, _BATCH_SIZE)]),
        evaluation=None,
        scratch=scratch,
        device=model.device,
        seed=_SEED,
    )
    calibrate = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
    run_step(context, model, pb.Step(calibrate=calibrate))
    if step is not None:
        run_step(context, model, step)
    return model


def predictions(model: WorkingModel, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the class with the highest score of each image."""
    scores = [model.predict({"image": batch})["scores"] for batch in _split(pixels, 1000)]
    return np.concatenate(scores).argmax(1)


def _split(pixels: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]
