"""Photos as models take them: Debian's Tux Paint stamps and foolbox's 20.

Ordered by the digest of their files, so that any two parts of them are alike.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.benchmarks.cpus.packages import demo_files, say
from tools.demo_data import ROOT, on_white, stamps

Pixels = NDArray[np.float32]

# Among smaller stamps are many drawings.
_MIN_SIDE = 130
_SHORTER_SIDE, _CROP = 256, 224
# Of values up to 255.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@cache
def photos() -> tuple[Path, ...]:
    """Return the files, mirrored ones and repetitions left out."""
    found = [*demo_files()[1], *stamps(ROOT / ".cache" / "demo" / "stamps", say, _MIN_SIDE)]
    by_digest = {
        hashlib.sha256(path.read_bytes()).digest(): path
        for path in found
        if not path.stem.endswith("_mirror")
    }
    return tuple(path for _, path in sorted(by_digest.items()))


def imagenet() -> Pixels:
    """Return RGB of 224 x 224 pixels, normalized as torchvision does, (n, 3, 224, 224)."""
    return _arrays(partial(_normalized, mean=IMAGENET_MEAN, std=IMAGENET_STD))


def efficientnet_lite() -> Pixels:
    """Return RGB of 224 x 224 pixels between -1 and 1, (n, 3, 224, 224)."""
    return _arrays(partial(_normalized, mean=(127.0,) * 3, std=(128.0,) * 3))


def open_nsfw() -> Pixels:
    """Return BGR of 224 x 224 pixels less Caffe's means, channels last, (n, 224, 224, 3)."""
    return _arrays(_caffe)


def letterboxed(side: int) -> Pixels:
    """Return RGB between 0 and 1, padded to a square at the right or bottom, (n, 3, side, side)."""
    return _arrays(partial(_padded, side=side))


def _arrays(convert: Callable[[Image.Image], NDArray[np.float32]]) -> Pixels:
    return np.stack([convert(on_white(path)) for path in photos()])


def _normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    shorter = min(image.size)
    width, height = (round(size * _SHORTER_SIDE / shorter) for size in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return channels_first(_cropped(resized), mean, std)


def _cropped(image: Image.Image) -> Image.Image:
    left, top = (image.width - _CROP) // 2, (image.height - _CROP) // 2
    return image.crop((left, top, left + _CROP, top + _CROP))


def channels_first(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """Return a picture as (3, height, width), normalized; mean and std of values up to 255."""
    pixels = np.asarray(image, np.float32) - np.asarray(mean, np.float32)
    return np.ascontiguousarray((pixels / np.asarray(std, np.float32)).transpose(2, 0, 1))


def _caffe(image: Image.Image) -> Pixels:
    squeezed = image.resize((_SHORTER_SIDE, _SHORTER_SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    _cropped(squeezed).save(buffer, "JPEG")
    pixels = np.asarray(Image.open(buffer), np.float32)[..., ::-1]
    return np.ascontiguousarray(pixels - np.array([104, 117, 123], np.float32))


def _padded(image: Image.Image, side: int) -> Pixels:
    square = Image.new("RGB", (max(image.size),) * 2)
    square.paste(image)
    resized = square.resize((side, side), Image.Resampling.BILINEAR)
    return channels_first(resized, (0.0,) * 3, (255.0,) * 3)
