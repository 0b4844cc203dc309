"""NumPy archives: members are streamed out of the zip when they are needed, then mapped."""

import lzma
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

from lighten_service.worker.datasets.array_source import ArraySource, MappedArray
from lighten_service.worker.datasets.npy import map_npy
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.unpack import Budget, unpack

_ENCRYPTED = 0x1
# What zipfile raises for damaged members, wrong checksums and unknown methods.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    ValueError,
)


def read_npz(request: Request) -> ArraySource:
    """Return the arrays of the archive by name, ``.npy`` left out.

    Raises:
        InvalidArgument: CORRUPT_DATASET, UNSAFE_ARCHIVE (duplicate or encrypted members),
            DECOMPRESSION_BOMB.
    """
    path = request.require_file()
    budget = Budget(request, path.stat().st_size)
    source: dict[str, partial[MappedArray]] = {}
    for number, member in enumerate(_members(request, path)):
        name = member.filename.removesuffix(".npy")
        if name in source:
            raise request.refuse("UNSAFE_ARCHIVE", f"the archive holds '{name}' twice")
        if member.flag_bits & _ENCRYPTED:
            raise request.refuse("UNSAFE_ARCHIVE", f"array '{name}' is encrypted")
        source[name] = partial(_extract, request, path, member, number, budget)
    return source


def _members(request: Request, path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as error:
        raise request.refuse("CORRUPT_DATASET", f"not a whole .npz archive: {error}") from error
    if len(members) > request.limits.members:
        raise request.refuse(
            "DECOMPRESSION_BOMB", f"the archive has more than {request.limits.members} members"
        )
    return members


def _extract(
    request: Request, path: Path, member: zipfile.ZipInfo, number: int, budget: Budget
) -> MappedArray:
    # Named by number: a member's own name never becomes a path.
    target = request.scratch / f"array-{number}.npy"
    name = member.filename.removesuffix(".npy")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            unpack(request, stream, target, budget, name)
    except _ZIP_ERRORS as error:
        raise request.refuse("CORRUPT_DATASET", f"array '{name}' is damaged: {error}") from error
    return map_npy(request, target, name)
