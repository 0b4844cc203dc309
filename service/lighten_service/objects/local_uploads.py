"""Multi-part uploads of the local folder: parts are files beside the object to be.

The folder ``.lighten-upload-<id>`` holds one file a part; after the parts are joined it holds the
file ``complete`` alone, so that a repeated completion is recognised. All functions block.
"""

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from lighten_service.jobs.errors import InvalidArgument, NotFound
from lighten_service.objects import folders
from lighten_service.objects.uri import RESERVED_PREFIX

MAX_PARTS = 10_000

_COPY_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}")
_COMPLETE = "complete"


def begin(root: Path, names: folders.Names) -> str:
    """Make room for the parts of the object and return the upload's id."""
    upload_id = secrets.token_hex(16)
    with folders.open_folder(root, _parts_folder(names, upload_id), create=True):
        return upload_id


def new_part(root: Path, names: folders.Names, upload_id: str, number: int) -> folders.NewFile:
    """Open part ``number`` for writing.

    Raises:
        NotFound: reason UPLOAD_NOT_FOUND.
        InvalidArgument: reason INVALID_PART; the number is not in 1..10000.
    """
    if not 1 <= number <= MAX_PARTS:
        raise InvalidArgument("INVALID_PART", f"part {number} is not in 1 to {MAX_PARTS}")
    folder = _parts_folder(names, upload_id)
    try:
        return folders.NewFile(root, (*folder, _part_name(number)), create_folders=False)
    except FileNotFoundError as error:
        raise _upload_not_found(upload_id) from error


def complete(root: Path, names: folders.Names, upload_id: str, etags: Sequence[str]) -> None:
    """Join the parts into the object; nothing when that was done before.

    Raises:
        NotFound: reason UPLOAD_NOT_FOUND.
        InvalidArgument: reason INVALID_PART; a part is missing or differs from its etag.
    """
    folder = _parts_folder(names, upload_id)
    try:
        with folders.open_folder(root, folder) as descriptor:
            done = _COMPLETE in _names_in(descriptor)
    except FileNotFoundError as error:
        raise _upload_not_found(upload_id) from error
    if not done:
        _join(root, names, folder, etags)
        marker = folders.NewFile(root, (*folder, _COMPLETE))
        marker.commit()
    _remove_parts(root, folder)


def _join(root: Path, names: folders.Names, folder: folders.Names, etags: Sequence[str]) -> None:
    target = folders.NewFile(root, names)
    try:
        for number, etag in enumerate(etags, start=1):
            with _open_part(root, folder, number, etag) as part:
                while chunk := part.read(_COPY_BYTES):
                    target.write(chunk)
        target.commit()
    finally:
        target.discard()


def _open_part(root: Path, folder: folders.Names, number: int, etag: str) -> BinaryIO:
    try:
        part = folders.open_file(root, (*folder, _part_name(number)))
    except FileNotFoundError as error:
        raise InvalidArgument("INVALID_PART", f"part {number} was never stored") from error
    if folders.etag_of(os.fstat(part.fileno())) == etag.strip('"'):
        return part
    part.close()
    raise InvalidArgument("INVALID_PART", f"part {number} was replaced after its etag was given")


def _remove_parts(root: Path, folder: folders.Names) -> None:
    with folders.open_folder(root, folder) as descriptor:
        for name in _names_in(descriptor):
            if name != _COMPLETE:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=descriptor)


def _names_in(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _parts_folder(names: folders.Names, upload_id: str) -> tuple[str, ...]:
    if not _ID.fullmatch(upload_id):
        raise _upload_not_found(upload_id)
    return (*names[:-1], f"{RESERVED_PREFIX}upload-{upload_id}")


def _part_name(number: int) -> str:
    return f"{number:05d}"


def _upload_not_found(upload_id: str) -> NotFound:
    return NotFound("UPLOAD_NOT_FOUND", f"there is no upload {upload_id!r}; begin a new one")
