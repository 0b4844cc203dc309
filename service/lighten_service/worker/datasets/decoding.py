"""Bytes of an image to 8-bit channels."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lighten import v1 as pb

# Raster formats alone: some of Pillow's other readers start programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
# What Pillow's readers raise for damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class BadImage(Exception):
    """The bytes are not a whole picture; the message says why."""


class TooManyPixels(Exception):
    """The picture is larger than the limit; the message says how large."""


def decode(content: bytes, *, color: pb.ColorMode.ValueType, max_pixels: int) -> Image.Image:
    """Return a picture of mode RGB, or L under GRAY (BGR is swapped when it becomes an array).

    Upright by its EXIF orientation; alpha is dropped, palettes and CMYK become RGB, 16-bit gray is
    scaled to 8 bits, of an animation the first frame is taken.

    Raises:
        BadImage: not a whole picture of a known format.
        TooManyPixels: before a pixel is decoded.
    """
    try:
        with _open(content) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(f"{image.width}x{image.height} pixels, at most {max_pixels}")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_mode(upright, "L" if color == pb.COLOR_MODE_GRAY else "RGB")
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    except DECODE_ERRORS as error:
        raise BadImage(str(error) or type(error).__name__) from error


def to_array(image: Image.Image, color: pb.ColorMode.ValueType) -> NDArray[np.uint8]:
    """Return (height, width, channels) in the channel order asked for."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if color == pb.COLOR_MODE_BGR else pixels


def _open(content: bytes) -> Image.Image:
    if not content:
        raise BadImage("the file is empty")
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage("32-bit pixels are not supported; store 8 or 16 bits")
    elif "transparency" in image.info:
        # A palette with transparency loses its colours when converted in one step.
        image = image.convert("RGBA")
    return image.convert(mode)
