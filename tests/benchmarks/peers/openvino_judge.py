"""Runs the FP32 and a quantized model in OpenVINO: outputs, and latency in turns.

The quantized model as OpenVINO runs it by default: what is not integer in bfloat16 where the
processor can. FP32 in FP32.

Usage: ``python -m tests.benchmarks.peers.openvino_judge FOLDER MODEL THREADS SECONDS``. Writes the
outputs beside the model and prints the rest as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

import numpy as np
import onnxruntime
import openvino

from tests.benchmarks.peers.task import INPUT, judged

_MIN_ROUNDS = 5


def main() -> None:
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    threads, seconds = int(sys.argv[3]), float(sys.argv[4])
    photos = judged(folder)
    quantized = _compile(model, threads, {})
    scores = [quantized(photos[i : i + 1])[0] for i in range(len(photos))]
    np.save(model.with_suffix(".npy"), np.concatenate(scores))
    fp32 = _compile(folder / "model.onnx", threads, {"INFERENCE_PRECISION_HINT": "f32"})
    runtime = _session(folder, threads)
    one = photos[:1]
    took = _in_turns(
        {
            "quantized": lambda: quantized(one),
            "fp32": lambda: fp32(one),
            "onnxruntime": lambda: runtime.run(None, {INPUT: one}),
        },
        seconds,
    )
    print(json.dumps({"seconds": took} | _operators(quantized)))


def _compile(path: Path, threads: int, options: dict[str, str]) -> openvino.CompiledModel:
    config = {"INFERENCE_NUM_THREADS": threads, **options}
    return openvino.Core().compile_model(path, "CPU", config)


def _session(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def _in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median time of each call; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    deadline = monotonic() + seconds
    rounds = 0
    while rounds <= _MIN_ROUNDS or monotonic() < deadline:
        for name, call in calls.items():
            began = perf_counter()
            call()
            taken[name].append(perf_counter() - began)
        rounds += 1
    return {name: median(times[1:]) for name, times in taken.items()}


def _operators(model: openvino.CompiledModel) -> dict[str, int]:
    """Count heavy operators, and those that OpenVINO computes with integers."""
    kinds = {"Convolution", "FullyConnected", "MatMul"}
    heavy = [
        operator.get_rt_info()["primitiveType"].astype(str)
        for operator in model.get_runtime_model().get_ops()
        if operator.get_rt_info()["layerType"].astype(str) in kinds
    ]
    return {"heavy": len(heavy), "integer": sum(kind.lower().endswith("i8") for kind in heavy)}


if __name__ == "__main__":
    main()
