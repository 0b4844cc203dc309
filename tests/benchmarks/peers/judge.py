"""Judges quantized ONNX files against FP32, all in one process, and outputs that another runtime
has written.

Usage: ``python -m tests.benchmarks.peers.judge FOLDER THREADS SECONDS NAME=FILE ...``, the file a
model or its outputs. Prints JSON.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lighten_service.worker.graphs.operators import operator_counts
from lighten_service.worker.latency import measure_latency
from tests.benchmarks.peers.task import BATCH_SIZE, INPUT, judged, labels

FP32 = "fp32"

Scores = NDArray[np.float32]


def main() -> None:
    folder, threads, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    files = {name: Path(path) for name, path in (item.split("=", 1) for item in sys.argv[4:])}
    files = {FP32: folder / "model.onnx", **files}
    photos, classes = judged(folder), labels(folder)
    reference = _scores(files[FP32], photos)
    figures: dict[str, dict[str, float]] = {
        name: _fidelity(_scores(path, photos), reference, classes) for name, path in files.items()
    }
    models = {name: path for name, path in files.items() if path.suffix == ".onnx"}
    for name, latency in _latency(models, photos, threads, seconds).items():
        counts = operator_counts(models[name])
        figures[name] |= {
            "seconds": latency,
            "heavy": counts.heavy,
            "integer": counts.integer_heavy,
        }
    print(json.dumps(figures))


def _scores(path: Path, photos: NDArray[np.float32]) -> Scores:
    if path.suffix == ".npy":
        return np.load(path)
    session = onnxruntime.InferenceSession(path)
    starts = range(0, len(photos), BATCH_SIZE)
    batches = [session.run(None, {INPUT: photos[i : i + BATCH_SIZE]})[0] for i in starts]
    return np.concatenate(batches)


def _fidelity(scores: Scores, reference: Scores, classes: NDArray[np.int64]) -> dict[str, float]:
    chosen, labelled = scores.argmax(1), classes >= 0
    noise = np.square(scores - reference, dtype=np.float64).sum()
    signal = np.square(reference, dtype=np.float64).sum()
    return {
        "sqnr": float(10 * np.log10(signal / noise)) if noise else float("inf"),
        "agreement": float((chosen == reference.argmax(1)).mean()),
        "top1": float((chosen == classes)[labelled].mean()),
        "labelled": int(labelled.sum()),
        "photos": len(scores),
    }


def _latency(
    models: Mapping[str, Path], photos: NDArray[np.float32], threads: int, seconds: float
) -> dict[str, float]:
    measured = measure_latency(
        models, {INPUT: photos[:1]}, threads=threads, budget_seconds=seconds, runs=1000
    )
    return {name: latency.median_seconds for name, latency in measured.items()}


if __name__ == "__main__":
    main()
