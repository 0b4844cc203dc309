"""What every peer gets. Needs NumPy alone."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INPUT = "image"
BATCH_SIZE = 8
_USAGE = 4


@dataclass(frozen=True, slots=True)
class Task:
    """Quantize the model of a folder, with the photos beside it, to ``output``."""

    folder: Path
    output: Path
    variant: str

    @classmethod
    def of_command_line(cls) -> "Task":
        if len(sys.argv) != _USAGE:
            sys.exit("usage: python -m tests.benchmarks.peers.PEER FOLDER OUTPUT VARIANT")
        return cls(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    def batches(self, size: int = BATCH_SIZE) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield the photos to calibrate on."""
        photos = calibration(self.folder)
        for start in range(0, len(photos), size):
            yield {INPUT: photos[start : start + size]}


def calibration(folder: Path) -> NDArray[np.float32]:
    with np.load(folder / "calibration.npz") as archive:
        return archive[INPUT]


def judged(folder: Path) -> NDArray[np.float32]:
    """Return the photos to judge on."""
    return np.load(folder / "judged.npy")


def labels(folder: Path) -> NDArray[np.int64]:
    """Return the class of each of them, -1 where it is not known."""
    return np.load(folder / "labels.npy")
