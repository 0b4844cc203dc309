"""Which device runs an ONNX graph."""

import onnxruntime

from lighten_service.worker.runtime import CPU

CUDA = "CUDAExecutionProvider"
# The same job gives the same encodings: no timing of kernels (a walk opens a session a layer), no
# rounding to TF32.
_EXACT = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}


def providers_for(device: str) -> tuple[object, ...]:
    """Return the execution providers for ``cpu`` or ``cuda:N``, the CPU last."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and CUDA in onnxruntime.get_available_providers():
        return ((CUDA, {"device_id": int(index or 0), **_EXACT}), CPU)
    return (CPU,)


def device_name(provider: str, requested: str) -> str:
    """Return the device that a session's provider stands for, ``cuda:0 NVIDIA A10`` say."""
    if provider != CUDA:
        return "cpu"
    import torch

    index = int(requested.partition(":")[2] or 0)
    return f"cuda:{index} {torch.cuda.get_device_name(index)}"
