"""One NumPy array in a file. Nothing is unpickled."""

import tokenize
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from lighten_service.worker.datasets.array_source import ArraySource, MappedArray
from lighten_service.worker.datasets.request import Request

Mapped = np.memmap[Any, np.dtype[Any]]

# What NumPy raises for a header that is not one, or that claims more than the file holds.
_HEADER_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    SyntaxError,
    TypeError,
    KeyError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


def read_npy(request: Request) -> ArraySource:
    """Return the one array of the file, under the name ``array``."""
    return {"array": partial(map_npy, request, request.require_file(), "array")}


def map_npy(request: Request, path: Path, name: str) -> MappedArray:
    """Map a .npy file of any version. One in Fortran order is rewritten to scratch first.

    Raises:
        InvalidArgument: PICKLED_DATA for objects, CORRUPT_DATASET for anything that is not a
            whole .npy file, FORTRAN_ORDER for one that is too large to rewrite.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except _HEADER_ERRORS as error:
        if "Python objects" in str(error):
            raise request.refuse(
                "PICKLED_DATA",
                f"array '{name}' holds pickled objects, which are never loaded; "
                "store it with a numeric dtype",
            ) from error
        raise request.refuse(
            "CORRUPT_DATASET", f"array '{name}' is not a whole .npy file: {error}"
        ) from error
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        array = _reordered(request, array, name)
    return MappedArray(array)


def _reordered(request: Request, array: Mapped, name: str) -> Mapped:
    limit = request.limits.reordered_bytes
    if array.nbytes > limit:
        raise request.refuse(
            "FORTRAN_ORDER",
            f"array '{name}' of {array.nbytes} bytes is in Fortran order, which is read up to "
            f"{limit} bytes; store numpy.ascontiguousarray of it",
        )
    target = request.scratch / f"reordered-{uuid4().hex}.npy"
    copy = np.lib.format.open_memmap(target, mode="w+", dtype=array.dtype, shape=array.shape)
    copy[...] = array
    copy.flush()
    return np.lib.format.open_memmap(target, mode="r")
