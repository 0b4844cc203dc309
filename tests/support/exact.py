"""QDQ files in the integer arithmetic that they mean, on every CPU that tests run on.

For tests of what an export computes. Kernels of x86 CPUs without VNNI saturate on weights of the
full range; there its twin with unsigned weights stands in for the file.
"""

from pathlib import Path

import onnx
import onnxruntime

from lighten_service.worker.integers.exact import exact_source
from lighten_service.worker.integers.saturation import saturates


def exact(path: Path) -> onnx.ModelProto | Path:
    """Return what to run instead of a file: itself, or its twin where this CPU saturates."""
    return exact_source(path, path.parent) if saturates() else path


def exact_session(
    path: Path, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Open what `exact` returns."""
    source = exact(path)
    content = source if isinstance(source, Path) else source.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
