"""aimet-onnx as its documentation shows it: fold batch norms, simulate, calibrate, export."""

import onnx
from aimet_onnx import QuantizationSimModel
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

from tests.benchmarks.peers.task import Task


def main() -> None:
    task = Task.of_command_line()
    model = onnx.load(task.model)
    fold_all_batch_norms_to_weight(model)
    sim = QuantizationSimModel(
        model,
        param_type="int8",
        activation_type="int8",
        quant_scheme=task.variant,
        providers=["CPUExecutionProvider"],
    )
    sim.compute_encodings(list(task.batches()))
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.output)


if __name__ == "__main__":
    main()
