"""NNCF's post-training quantization with its mixed preset (symmetric weights, asymmetric
activations), of an ONNX model or of an OpenVINO model made from it.
"""

import nncf
import onnx
import openvino

from tests.benchmarks.peers.task import INPUT, Task, calibration


def main() -> None:
    task = Task.of_command_line()
    photos = calibration(task.folder)
    on_openvino = task.variant == "openvino"
    model = openvino.Core().read_model(task.model) if on_openvino else onnx.load(task.model)
    # One photo at a time: NNCF averages ranges over what it is given.
    quantized = nncf.quantize(
        model,
        nncf.Dataset(photos, lambda photo: {INPUT: photo[None]}),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(photos),
    )
    if on_openvino:
        openvino.save_model(quantized, task.output)
    else:
        onnx.save(quantized, task.output)


if __name__ == "__main__":
    main()
