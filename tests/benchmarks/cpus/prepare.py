"""Writes what all get of a model: the float file, samples to calibrate on, others to judge on, and
what FP32 makes of those in ONNX Runtime.

Usage: ``python -m tests.benchmarks.cpus.prepare FOLDER MODEL CALIBRATION JUDGED`` (numbers of
samples; fewer are judged where there are not as many).
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.benchmarks.cpus.models import MODELS
from tests.benchmarks.cpus.running import runner


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    calibration, judged = int(sys.argv[3]), int(sys.argv[4])
    model = next(model for model in MODELS if model.name == name)
    target = folder / "model.onnx"
    model.write(target)
    (own,) = onnxruntime.InferenceSession(target).get_inputs()
    samples = _distinct(model.samples())
    np.savez(folder / "calibration.npz", **{own.name: samples[:calibration]})
    chosen = samples[calibration : calibration + judged]
    np.save(folder / "judged.npy", chosen)
    run = runner(target, openvino=False)
    outputs = [run(chosen[i : i + 1]) for i in range(len(chosen))]
    for number, values in enumerate(zip(*outputs, strict=True)):
        np.save(folder / f"fp32-{number}.npy", np.concatenate(values))


def _distinct(samples: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the samples in their order, repetitions left out."""
    first = {sample.tobytes(): index for index, sample in reversed([*enumerate(samples)])}
    return samples[sorted(first.values())]


if __name__ == "__main__":
    main()
