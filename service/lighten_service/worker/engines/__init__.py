"""The two engines, aimet-torch and aimet-onnx, behind `WorkingModel`."""

from pathlib import Path

from lighten import v1 as pb
from lighten_service.worker.model import WorkingModel


def open_model(
    spec: pb.JobSpec, artifact: Path, *, scratch: Path, device: str, seed: int
) -> WorkingModel:
    """Load the model of a resolved spec with the engine that its format calls for.

    Args:
        spec: resolved job.
        artifact: the fetched file, or folder, of ``spec.model``.
        scratch: folder for what the engine writes.
        device: ``cpu`` or ``cuda:0``.
        seed: of every random choice.

    Raises:
        LightenError: the model is at fault, or nothing that this engine can quantize.
    """
    # AIMET's two engines take seconds and hundreds of megabytes to import; a job needs one.
    if spec.model.format == pb.MODEL_FORMAT_ONNX:
        from lighten_service.worker.engines.onnx_engine import open_onnx_model

        return open_onnx_model(spec, artifact, scratch=scratch, device=device, seed=seed)
    from lighten_service.worker.engines.torch_engine import open_torch_model

    return open_torch_model(spec, artifact, scratch=scratch, device=device, seed=seed)
