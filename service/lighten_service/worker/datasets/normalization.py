"""Scale, mean and standard deviation of ``Preprocessing``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.datasets.request import Request


@dataclass(frozen=True, slots=True)
class Normalization:
    """``(x * scale - mean) / std``; ``mean`` and ``std`` broadcast over the values."""

    scale: np.float32
    mean: NDArray[np.float32] | None
    std: NDArray[np.float32] | None

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return normalized values as FLOAT32; an array of that type is changed in place."""
        result = values.astype(np.float32, copy=False)
        if self.scale != 1:
            result *= self.scale
        if self.mean is not None:
            result -= self.mean
        if self.std is not None:
            result /= self.std
        return result


def normalization(
    request: Request, *, default_scale: float, channels: int, axis: int, rank: int
) -> Normalization:
    """Build the arithmetic of ``Preprocessing`` for values of ``rank`` dimensions.

    Args:
        default_scale: where the spec has none.
        channels: size of the channel axis.
        axis: channel axis, counted as in NumPy.
        rank: dimensions of the values that ``apply`` gets.

    Raises:
        InvalidArgument: INVALID_PREPROCESSING.
    """
    spec = request.dataset.preprocessing
    scale = spec.scale if spec.HasField("scale") else default_scale
    if any(not value > 0 for value in spec.std):
        raise _invalid(request, "std", "every value must be above 0")

    def vector(name: str, values: Sequence[float]) -> NDArray[np.float32] | None:
        if not values:
            return None
        if not all(math.isfinite(value) for value in values):
            raise _invalid(request, name, "every value must be finite")
        if len(values) not in (1, channels):
            raise _invalid(
                request, name, f"{len(values)} values for {channels} channels; give 1 or {channels}"
            )
        shape = [1] * rank
        shape[axis] = len(values)
        return np.array(values, dtype=np.float32).reshape(shape)

    return Normalization(np.float32(scale), vector("mean", spec.mean), vector("std", spec.std))


def array_normalizations(request: Request) -> dict[str, Normalization]:
    """Return the arithmetic for each FLOAT32 input; integer inputs are taken as they are.

    The channel axis is the first of a sample under NCHW, the last under NHWC.

    Raises:
        InvalidArgument: INVALID_PREPROCESSING, also for steps that only images have.
    """
    spec = request.dataset.preprocessing
    for name in ("resize", "center_crop"):
        if spec.HasField(name):
            raise _invalid(request, name, "is for images; remove it, or store images")
    if spec.color not in (pb.COLOR_MODE_UNSPECIFIED, pb.COLOR_MODE_RGB):
        raise _invalid(request, "color", "is for images; remove it, or store images")
    floating = [
        model_input
        for model_input in request.inputs
        if model_input.dtype in (pb.ELEMENT_TYPE_UNSPECIFIED, pb.ELEMENT_TYPE_FLOAT32)
    ]
    for name in ("scale", "mean", "std"):
        given = spec.HasField("scale") if name == "scale" else len(getattr(spec, name)) > 0
        if given and not floating:
            raise _invalid(request, name, "the model has no FLOAT32 input that it could apply to")
    return {model_input.name: _for_input(request, model_input) for model_input in floating}


def _for_input(request: Request, model_input: pb.InputSpec) -> Normalization:
    rank = len(model_input.shape) + 1
    last = request.dataset.preprocessing.layout == pb.LAYOUT_NHWC
    axis = rank - 1 if last or rank == 1 else 1
    channels = model_input.shape[axis - 1] if rank > 1 else 1
    return normalization(request, default_scale=1.0, channels=channels, axis=axis, rank=rank)


def _invalid(request: Request, name: str, message: str) -> Exception:
    return request.refuse(
        "INVALID_PREPROCESSING", f"preprocessing.{name}: {message}", at=f"preprocessing.{name}"
    )
