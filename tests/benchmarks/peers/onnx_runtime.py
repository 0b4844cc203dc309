"""ONNX Runtime's ``quantize_static``, as its documentation recommends for a CPU with VNNI."""

import tempfile
from pathlib import Path

from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.benchmarks.peers.task import Task

_METHODS = {"min-max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}


class Photos(CalibrationDataReader):
    def __init__(self, task: Task) -> None:
        self._batches = task.batches()

    def get_next(self) -> dict | None:
        return next(self._batches, None)


def main() -> None:
    task = Task.of_command_line()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(task.model, prepared)
        quantize_static(
            prepared,
            task.output,
            Photos(task),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[task.variant],
        )


if __name__ == "__main__":
    main()
