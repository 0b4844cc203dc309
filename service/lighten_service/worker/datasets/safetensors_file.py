"""safetensors: the library checks the header, the tensors are mapped where they lie."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lighten_service.worker.datasets.array_source import ArraySource, MappedArray
from lighten_service.worker.datasets.request import Request

# Types of the format that NumPy has as well.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_LENGTH_BYTES = 8


def read_safetensors(request: Request) -> ArraySource:
    """Return the tensors of the file by name.

    Raises:
        InvalidArgument: CORRUPT_DATASET, DTYPE_MISMATCH for types without a NumPy counterpart.
    """
    path = request.require_file()
    try:
        # Checks that offsets neither overlap nor leave the file, which is why they are used below.
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise request.refuse("CORRUPT_DATASET", f"not a whole safetensors file: {error}") from error
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(_LENGTH_BYTES), "little")
        header = json.loads(raw.read(length))
    start = _LENGTH_BYTES + length
    return {name: partial(_map, request, path, name, header[name], start) for name in names}


def _map(request: Request, path: Path, name: str, entry: dict[str, Any], start: int) -> MappedArray:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        raise request.refuse(
            "DTYPE_MISMATCH",
            f"tensor '{name}' is {dtype}, which is not supported; store it as F32, F16 or integers",
        )
    if 0 in shape:
        return MappedArray(np.zeros(shape, dtype=_DTYPES[dtype]))
    array = np.memmap(
        path, dtype=_DTYPES[dtype], mode="r", offset=start + offsets[0], shape=tuple(shape)
    )
    return MappedArray(array)
