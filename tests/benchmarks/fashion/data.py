"""Fashion-MNIST from Debian's package: 60,000 training and 10,000 test images, 28 x 28, 10 classes.

Xiao et al. 2017, arXiv:1708.07747.
"""

import gzip
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The first training images, for the ranges and roundings of quantized models.
CALIBRATION_IMAGES = 1024
_PACKAGE = "dataset-fashion-mnist"
_CACHE = Path(__file__).parents[3] / ".cache" / "fashion"
_FOLDER = Path("usr/share/datasets/fashion-mnist")
# Of the training images, as the network sees them.
_MEAN, _STD = 0.2860, 0.3530
# Bytes before the values: a magic number, and four bytes for each dimension.
_IMAGE_HEADER, _LABEL_HEADER = 16, 8


@dataclass(frozen=True, slots=True)
class Images:
    """``pixels``: normalised, (n, 1, 28, 28); ``labels``: (n,), 0 to 9."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]


def training_images() -> Images:
    return _read("train")


def test_images() -> Images:
    return _read("t10k")


def _read(part: str) -> Images:
    folder = _folder()
    raw = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=_IMAGE_HEADER).reshape(-1, 1, 28, 28)
    raw = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(raw, np.uint8, offset=_LABEL_HEADER)
    normalised = (pixels.astype(np.float32) / 255 - np.float32(_MEAN)) / np.float32(_STD)
    return Images(normalised, labels.astype(np.int64))


def _folder() -> Path:
    """Return the files' folder, downloading the package (31 MB) the first time; needs no root.

    Raises:
        subprocess.CalledProcessError: apt-get has no such package.
    """
    folder = _CACHE / _FOLDER
    if not folder.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-qq", "download", _PACKAGE], cwd=_CACHE, check=True)
        package = next(_CACHE.glob(f"{_PACKAGE}_*.deb"))
        subprocess.run(["dpkg", "-x", package, _CACHE], check=True)
        package.unlink()
    return folder
