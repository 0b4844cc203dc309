"""Models as functions of one sample, in ONNX Runtime or OpenVINO, one thread each.

Needs one of the two and NumPy alone.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.generic]], list[NDArray[np.float32]]]


def runner(path: Path, *, openvino: bool) -> Run:
    """Return what computes all outputs of a sample with its batch dimension."""
    return _openvino(path) if openvino else _onnx_runtime(path)


def _onnx_runtime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (own,) = session.get_inputs()
    return lambda sample: session.run(None, {own.name: sample})


def _openvino(path: Path) -> Run:
    import openvino

    # Not bfloat16 for what is not integer: the integers shall be all that CPUs differ in.
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda sample: [compiled(sample)[output].copy() for output in compiled.outputs]
