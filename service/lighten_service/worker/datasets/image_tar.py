"""Images in a tar: one pass over the headers, members read on demand."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lighten_service.worker.datasets.image_index import ImageIndex, index_folder_layout
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.stored_file import StoredFile
from lighten_service.worker.datasets.unpack import Budget, Readable, unpack
from lighten_service.worker.datasets.webdataset import index_webdataset, is_webdataset

# First bytes of compressed files, and what reads them.
_COMPRESSIONS: tuple[tuple[bytes, Callable[[Path], Readable]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_STREAM_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
# Extended headers chain into each other by recursion, and hold numbers as text.
_HEADER_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, KeyError)
# Long names and PAX records are read whole; nothing honest needs more.
_MAX_HEADER = 1 << 20


def read_image_tar(request: Request) -> ImageIndex:
    """Index an archive, unpacked to scratch first when it is compressed.

    Raises:
        InvalidArgument: CORRUPT_DATASET, UNSAFE_ARCHIVE, DECOMPRESSION_BOMB, and as the layouts.
        ResourceExhausted: SCRATCH_FULL.
    """
    path = _plain(request, request.require_file())
    files = list(_members(request, path))
    if is_webdataset(files):
        return index_webdataset(request, files)
    return index_folder_layout(request, files)


def _plain(request: Request, path: Path) -> Path:
    with path.open("rb") as file:
        start = file.read(8)
    for magic, opened in _COMPRESSIONS:
        if start.startswith(magic):
            try:
                with opened(path) as stream:  # type: ignore[attr-defined]
                    budget = Budget(request, path.stat().st_size)
                    return unpack(request, stream, request.scratch / "images.tar", budget, "data")
            except _STREAM_ERRORS as error:
                raise request.refuse(
                    "CORRUPT_DATASET", f"the compressed archive is damaged: {error}"
                ) from error
    return path


class _HeaderFile:
    """A file that refuses to read a header of absurd size into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _members(request: Request, path: Path) -> Iterator[StoredFile]:
    """Yield plain files in archive order; everything but files and folders is refused."""
    names: set[str] = set()
    try:
        with path.open("rb") as file:
            for member in _headers(file):
                if len(names) >= request.limits.members:
                    raise request.refuse(
                        "DECOMPRESSION_BOMB",
                        f"the archive has more than {request.limits.members} members",
                    )
                name = _safe_name(request, member)
                if name in names and not member.isdir():
                    raise request.refuse("UNSAFE_ARCHIVE", f"the archive holds '{name}' twice")
                names.add(name)
                if member.isreg():
                    yield StoredFile(name, path, member.offset_data, member.size)
    except _HEADER_ERRORS as error:
        raise request.refuse(
            "CORRUPT_DATASET", f"not a whole tar archive: {error or type(error).__name__}"
        ) from error


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    size = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=_HeaderFile(file), mode="r:") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            # The list that tarfile keeps would grow with the archive.
            archive.members.clear()
            if member.offset_data + (member.size if member.isreg() else 0) > size:
                raise tarfile.ReadError(f"'{member.name}' is cut off")
            yield member
        # tarfile takes a damaged header for the end; the end is zeros or nothing.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {archive.offset}")


def _safe_name(request: Request, member: tarfile.TarInfo) -> str:
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise request.refuse(
            "UNSAFE_ARCHIVE", f"the member '{name}' leaves the archive's folder; use plain paths"
        )
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise request.refuse(
            "UNSAFE_ARCHIVE",
            f"the member '{name}' is a link, a device or a sparse file; store plain files",
        )
    return "/".join(parts)
