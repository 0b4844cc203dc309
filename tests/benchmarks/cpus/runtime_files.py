"""ONNX Runtime's own INT8 files, and what can be made of them.

As its documentation recommends: ``quantize_static``, min-max, QDQ, unsigned activations, signed
weights with a scale for each channel.

Usage: ``python -m tests.benchmarks.cpus.runtime_files FOLDER``.
"""

import sys
from pathlib import Path

import numpy as np
import onnx.version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from lighten_service.worker.graphs.walk import opset
from lighten_service.worker.integers.twin import unsigned_twin
from tests.benchmarks.cpus.pair_safe import write_pair_safe

_PER_CHANNEL_OPSET, _OPSET = 13, 17


def main() -> None:
    folder = Path(sys.argv[1])
    prepared, calibration = folder / "prepared.onnx", folder / "calibration.npz"
    plain, seven, safe = (folder / f"{name}.onnx" for name in ("plain", "seven", "safe"))
    prepare(folder / "model.onnx", prepared)
    quantize(prepared, calibration, plain, reduce_range=False)
    quantize(prepared, calibration, seven, reduce_range=True)
    write_pair_safe(plain, prepared, safe)
    for path in (plain, seven, safe):
        write_twin(path)


def write_twin(path: Path) -> None:
    """Write beside a file its twin with unsigned weights, ``NAME.twin.onnx``."""
    onnx.save(unsigned_twin(onnx.load(path)), path.with_suffix(".twin.onnx"))


class _OneByOne(CalibrationDataReader):
    def __init__(self, archive: Path) -> None:
        with np.load(archive) as arrays:
            ((name, samples),) = arrays.items()
        self._feeds = ({name: samples[i : i + 1]} for i in range(len(samples)))

    def get_next(self) -> dict | None:
        return next(self._feeds, None)


def prepare(model: Path, target: Path) -> None:
    """Write the model as ``quantize_static`` wants it: optimized, with shapes, and of an opset that
    has grids for each channel."""
    quant_pre_process(model, target, skip_symbolic_shape=True)
    prepared = onnx.load(target)
    if opset(prepared) < _PER_CHANNEL_OPSET:
        onnx.save(onnx.version_converter.convert_version(prepared, _OPSET), target)


def quantize(prepared: Path, calibration: Path, target: Path, *, reduce_range: bool) -> None:
    """Write an INT8 file, with ``reduce_range`` one of 7-bit weights."""
    quantize_static(
        prepared,
        target,
        _OneByOne(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


if __name__ == "__main__":
    main()
