"""A QDQ file in exact integer arithmetic, also on CPUs whose kernels saturate."""

from pathlib import Path

import onnx

from lighten_service.worker.graphs.save import fits_one_file, save_single_file
from lighten_service.worker.integers.twin import unsigned_twin


def exact_source(path: Path, scratch: Path) -> onnx.ModelProto | Path:
    """Return what to run instead of a file: its twin with unsigned weights, which no kernel
    saturates on. In memory, or below ``scratch`` where it is too large for one message."""
    twin = unsigned_twin(onnx.load(path))
    if fits_one_file(twin):
        return twin
    file = scratch / f"exact-{path.name}"
    save_single_file(twin, file)
    return file
