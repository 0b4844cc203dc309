"""From a picture to a model input, as ``Preprocessing`` says."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lighten import v1 as pb
from lighten_service.worker.datasets.decoding import TooManyPixels, to_array
from lighten_service.worker.datasets.normalization import normalization
from lighten_service.worker.datasets.request import Request

_FILTERS = {
    pb.INTERPOLATION_UNSPECIFIED: Image.Resampling.BILINEAR,
    pb.INTERPOLATION_BILINEAR: Image.Resampling.BILINEAR,
    pb.INTERPOLATION_BICUBIC: Image.Resampling.BICUBIC,
    pb.INTERPOLATION_NEAREST: Image.Resampling.NEAREST,
}


class ImagePreprocessing:
    """Resize, crop, normalize, lay out. Rounding is that of torchvision's Resize and CenterCrop.

    ``mean`` and ``std`` are in the order of the channels, thus blue first under BGR.

    Raises:
        InvalidArgument: INVALID_PREPROCESSING, SHAPE_MISMATCH, DTYPE_MISMATCH, when what the spec
            says cannot make the model's input.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._spec = request.dataset.preprocessing
        self._channels = 1 if self._spec.color == pb.COLOR_MODE_GRAY else 3
        self._last = self._spec.layout == pb.LAYOUT_NHWC
        self._expected = self._expected_shape()
        self._check_resize()
        self._check_static_size()
        self._normalization = normalization(
            request, default_scale=1 / 255, channels=self._channels, axis=2, rank=3
        )

    @property
    def color(self) -> pb.ColorMode.ValueType:
        return self._spec.color

    def apply(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """Return one sample in the shape of the model's input.

        Raises:
            InvalidArgument: SHAPE_MISMATCH, when the size depends on the picture and does not fit.
            TooManyPixels: resizing would make a picture beyond the limit.
        """
        pixels = to_array(self._cropped(self._resized(image)), self._spec.color)
        self._check_size(pixels.shape[0], pixels.shape[1], f"'{name}' becomes")
        values = self._normalization.apply(pixels.astype(np.float32))
        return np.ascontiguousarray(values if self._last else values.transpose(2, 0, 1))

    def _resized(self, image: Image.Image) -> Image.Image:
        if not self._spec.HasField("resize"):
            return image
        resize = self._spec.resize
        width, height = resize.width, resize.height
        if resize.shorter_side:
            shorter, longer = sorted(image.size)
            longer = int(resize.shorter_side * longer / shorter)
            sizes = (resize.shorter_side, longer)
            width, height = sizes if image.width <= image.height else sizes[::-1]
        limit = self._request.limits.image_pixels
        if width * height > limit:
            raise TooManyPixels(f"{width}x{height} pixels after resizing, at most {limit}")
        return image.resize((width, height), _FILTERS[resize.interpolation])

    def _cropped(self, image: Image.Image) -> Image.Image:
        if not self._spec.HasField("center_crop"):
            return image
        width, height = self._spec.center_crop.width, self._spec.center_crop.height
        if image.width < width or image.height < height:
            padded = Image.new(image.mode, (max(image.width, width), max(image.height, height)))
            padded.paste(
                image, ((padded.width - image.width) // 2, (padded.height - image.height) // 2)
            )
            image = padded
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _expected_shape(self) -> tuple[int, int, int]:
        """Return (height, width, channels) of the model's one input."""
        if len(self._request.inputs) != 1:
            raise self._request.refuse(
                "INPUT_NOT_FOUND",
                f"images feed a model with one input, this one has {len(self._request.inputs)}; "
                "store arrays (NPZ or SAFETENSORS)",
                at="format",
            )
        (model_input,) = self._request.inputs
        if model_input.dtype not in (pb.ELEMENT_TYPE_UNSPECIFIED, pb.ELEMENT_TYPE_FLOAT32):
            raise self._request.refuse(
                "DTYPE_MISMATCH",
                f"images feed FLOAT32, the model input '{model_input.name}' is "
                f"{pb.ElementType.Name(model_input.dtype).removeprefix('ELEMENT_TYPE_')}; "
                "store arrays",
                at="format",
            )
        if len(model_input.shape) != 3:
            raise self._request.refuse(
                "SHAPE_MISMATCH",
                f"images need a model input of three dimensions a sample, '{model_input.name}' "
                f"has {list(model_input.shape)}; store arrays",
                at="format",
            )
        first, second, third = model_input.shape
        shape = (first, second, third) if self._last else (second, third, first)
        self._check_channels(model_input, shape[2])
        return shape

    def _check_channels(self, model_input: pb.InputSpec, channels: int) -> None:
        if channels == self._channels:
            return
        other = model_input.shape[0] if self._last else model_input.shape[2]
        what = f"the model input '{model_input.name}' of shape {list(model_input.shape)}"
        if other == self._channels:
            layout = "NCHW" if self._last else "NHWC"
            raise self._invalid("layout", f"{what} looks like {layout}; set it so")
        raise self._invalid(
            "color", f"gives {self._channels} channels, but {what} takes {channels}"
        )

    def _check_resize(self) -> None:
        if not self._spec.HasField("resize"):
            return
        resize = self._spec.resize
        given = (bool(resize.shorter_side), bool(resize.height), bool(resize.width))
        if given not in ((True, False, False), (False, True, True)):
            raise self._invalid("resize", "set shorter_side alone, or height and width")

    def _check_static_size(self) -> None:
        """Check the size before any picture is read, where the spec alone decides it."""
        crop, resize = self._spec.center_crop, self._spec.resize
        if self._spec.HasField("center_crop"):
            if not (crop.height and crop.width):
                raise self._invalid("center_crop", "set height and width")
            self._check_size(crop.height, crop.width, "it gives", "center_crop")
        elif resize.height and resize.width:
            self._check_size(resize.height, resize.width, "it gives", "resize")

    def _check_size(self, height: int, width: int, subject: str, name: str = "") -> None:
        if (height, width) != self._expected[:2]:
            at = f"preprocessing.{name}" if name else "preprocessing"
            raise self._request.refuse(
                "SHAPE_MISMATCH",
                f"{at}: {subject} {height}x{width} pixels (height x width), but the model input "
                f"'{self._request.inputs[0].name}' needs {self._expected[0]}x{self._expected[1]}; "
                "set resize or center_crop to this size",
                at=at,
            )

    def _invalid(self, name: str, message: str) -> Exception:
        return self._request.refuse(
            "INVALID_PREPROCESSING", f"preprocessing.{name}: {message}", at=f"preprocessing.{name}"
        )
