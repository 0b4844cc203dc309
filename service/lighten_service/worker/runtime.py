"""ONNX files in ONNX Runtime, as the deployed model will run."""

import os
from pathlib import Path

import onnxruntime

from lighten_service.worker.model import Batch, Outputs


def threads() -> int:
    """Return how many threads the attempt may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdigit() else len(os.sched_getaffinity(0))


class RuntimeModel:
    """An ONNX file on the CPU, with graph optimizations on or off."""

    def __init__(self, path: Path, *, optimized: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            if optimized
            else onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def predict(self, batch: Batch) -> Outputs:
        """Run a batch; outputs by name in graph order."""
        values = self._session.run(self._outputs, dict(batch))
        return dict(zip(self._outputs, values, strict=True))
