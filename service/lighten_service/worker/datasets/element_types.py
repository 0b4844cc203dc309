"""Stored element types and the ones that models take."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb

# Types whose every value FLOAT32 holds, and float64, which is rounded.
_TO_FLOAT32 = frozenset(
    np.dtype(name) for name in ("float16", "float32", "float64", "int8", "uint8", "int16", "uint16")
)
_TARGETS: dict[int, type[np.generic]] = {
    pb.ELEMENT_TYPE_FLOAT32: np.float32,
    pb.ELEMENT_TYPE_INT32: np.int32,
    pb.ELEMENT_TYPE_INT64: np.int64,
    pb.ELEMENT_TYPE_BOOL: np.bool_,
}


def target_dtype(element_type: pb.ElementType.ValueType) -> np.dtype[np.generic]:
    """Return the NumPy type of a model input; FLOAT32 where the spec leaves it open."""
    return np.dtype(_TARGETS.get(element_type, np.float32))


def check_dtype(stored: np.dtype[np.generic], wanted: pb.ElementType.ValueType) -> str | None:
    """Return why ``stored`` cannot feed an input of type ``wanted``, or None when it can.

    FLOAT32 takes floats up to 64 bits and integers up to 16; INT32 and INT64 take integers, BOOL
    takes bool.
    """
    target = target_dtype(wanted)
    native = stored.newbyteorder("=")
    if target == np.float32:
        return (
            None
            if native in _TO_FLOAT32
            else f"is {stored}, but FLOAT32 is needed; convert it to float32"
        )
    if target == np.bool_:
        return None if native == np.bool_ else f"is {stored}, but bool is needed"
    if not np.issubdtype(native, np.integer):
        return f"is {stored}, but integers ({target}) are needed"
    return None


def convert(
    rows: NDArray[Any], target: np.dtype[np.generic]
) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """Convert a batch to the input's type, C order.

    Returns:
        The converted batch and, where a sample holds a value that does not survive (NaN, infinite,
        beyond the range of the type), a mask of such samples, shape (n,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(rows, dtype=target)
    good: NDArray[np.bool_]
    if target == np.float32:
        good = np.isfinite(converted)
    elif target == np.bool_ or rows.dtype == target:
        return converted, None
    else:
        limits = np.iinfo(target.name)
        good = np.asarray((rows >= limits.min) & (rows <= limits.max))
    if good.all():
        return converted, None
    faulty = np.asarray(~good).reshape(len(good), -1)
    return converted, np.logical_or.reduce(faulty, axis=1)
