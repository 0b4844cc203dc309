"""File system calls below a root that cannot be led out of it.

Paths are walked name by name with directory descriptors and O_NOFOLLOW, so neither ``..`` nor a
link, also one that is put in place meanwhile, leads elsewhere. All functions block.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lighten_service.jobs.errors import (
    InvalidArgument,
    LightenError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from lighten_service.objects.uri import RESERVED_PREFIX, invalid_uri

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a named pipe must not wait for its writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Names = Sequence[str]


@contextmanager
def errors_of(uri: str) -> Iterator[None]:
    """Turn the OSErrors of a block into typed errors that name the URI."""
    try:
        yield
    except OSError as error:
        raise _translate(uri, error) from error


@contextmanager
def file_as_folder_is_missing() -> Iterator[None]:
    """For reading: what lies "below" a file does not exist."""
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, error.strerror) from error


def etag_of(status: os.stat_result) -> str:
    """Return a tag that changes whenever the file is replaced or written to."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


@contextmanager
def open_folder(root: Path, names: Names, *, create: bool = False) -> Iterator[int]:
    """Give the descriptor of a folder below ``root``, made with its parents when asked for."""
    try:
        folder = os.open(root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise NotFound("BUCKET_NOT_FOUND", f"the folder {root} does not exist") from error
    try:
        for name in names:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            inner = _open_inner(name, folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def open_file(root: Path, names: Names) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: as ``os.open``; FileNotFoundError also for a folder.
        PermissionDenied: reason OBJECT_FORBIDDEN; a link or a special file.
    """
    descriptor, _ = _open_regular(root, names)
    return os.fdopen(descriptor, "rb")


def status_of(root: Path, names: Names) -> os.stat_result:
    """Return the status of a regular file that can be read. Raises what ``open_file`` does."""
    descriptor, status = _open_regular(root, names)
    os.close(descriptor)
    return status


def _open_regular(root: Path, names: Names) -> tuple[int, os.stat_result]:
    with open_folder(root, names[:-1]) as folder:
        try:
            descriptor = os.open(names[-1], _FILE_FLAGS, dir_fd=folder)
        except OSError as error:
            raise _link_or(error, names[-1], folder) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status
    os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "it is a folder")
    raise _not_regular(names[-1])


class NewFile:
    """A file that appears under its name when it is complete, or never.

    Calls may come from different threads, one at a time; ``discard`` may come at any time.
    """

    def __init__(self, root: Path, names: Names, *, create_folders: bool = True) -> None:
        self._root = root
        self._names = tuple(names)
        self._temporary = f"{RESERVED_PREFIX}new-{secrets.token_hex(8)}"
        with open_folder(root, names[:-1], create=create_folders) as folder:
            descriptor = os.open(self._temporary, _NEW_FILE_FLAGS, 0o666, dir_fd=folder)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def commit(self) -> os.stat_result:
        """Make the file durable and visible, in place of an earlier one."""
        self._file.flush()
        os.fsync(self._file.fileno())
        status = os.fstat(self._file.fileno())
        self._file.close()
        with open_folder(self._root, self._names[:-1]) as folder:
            os.replace(self._temporary, self._names[-1], src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        return status

    def discard(self) -> None:
        """Remove what was written; nothing when the file was committed."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError, LightenError), open_folder(self._root, self._names[:-1]) as folder:
            os.unlink(self._temporary, dir_fd=folder)


def walk(folder: int, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path below the folder, status) of all files, in the byte order of the paths.

    What is deleted meanwhile is left out.

    Raises:
        InvalidArgument: reason INVALID_URI; a name is not UTF-8.
        PermissionDenied: reason OBJECT_FORBIDDEN; a link or special file is among them.
    """
    found = _entries(folder)
    # "/" sorts after "-" and ".": "a-b" comes before "a/c".
    found.sort(key=lambda entry: os.fsencode(entry[0] + "/" * entry[1]))
    for name, is_folder in found:
        if name.startswith(RESERVED_PREFIX):
            continue
        if not _is_text(name):
            raise InvalidArgument("INVALID_URI", f"the file name {name!a} is not UTF-8: rename it")
        if is_folder:
            try:
                inner = _open_inner(name, folder)
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted since the folder was read
            try:
                yield from walk(inner, f"{below}{name}/")
            finally:
                os.close(inner)
            continue
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted since the folder was read
        if not stat.S_ISREG(status.st_mode):
            raise _link(name) if stat.S_ISLNK(status.st_mode) else _not_regular(name)
        yield f"{below}{name}", status


def empty(folder: int) -> int:
    """Remove everything below a folder, without following links; return the number of objects."""
    removed = 0
    for path, folders, files, inner in os.fwalk(".", topdown=False, dir_fd=folder):
        hidden = any(name.startswith(RESERVED_PREFIX) for name in path.split("/"))
        for name in files:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=inner)
                removed += not hidden and not name.startswith(RESERVED_PREFIX)
        for name in folders:
            with suppress(FileNotFoundError):
                # A link to a folder stands among the folders.
                is_link = stat.S_ISLNK(os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode)
                (os.unlink if is_link else os.rmdir)(name, dir_fd=inner)
                removed += is_link
    return removed


def _entries(folder: int) -> list[tuple[str, bool]]:
    """Return (name, whether it is a folder) of what lies in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return []  # deleted since it was opened


def _open_inner(name: str, folder: int) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        raise _link_or(error, name, folder) from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _link_or(error: OSError, name: str, folder: int) -> Exception:
    """Tell a link, which systems report as ELOOP or ENOTDIR, from other errors."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        with suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return _link(name)
    return error


def _link(name: str) -> PermissionDenied:
    return PermissionDenied(
        "OBJECT_FORBIDDEN", f"{name!r} is a link; links are not followed: copy the file instead"
    )


def _not_regular(name: str) -> PermissionDenied:
    return PermissionDenied("OBJECT_FORBIDDEN", f"{name!r} is not a regular file")


def _translate(uri: str, error: OSError) -> LightenError:
    match error.errno:
        case errno.ENOENT:
            return NotFound("OBJECT_NOT_FOUND", f"there is no object {uri!r}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(
                "OBJECT_FORBIDDEN", f"the server may not use {uri!r}: {error.strerror}"
            )
        case errno.ENAMETOOLONG:
            return invalid_uri(uri, "a name is too long")
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return InvalidArgument(
                "INVALID_URI", f"{uri!r} cannot be used: a file and a folder share a name"
            )
    return Unavailable("STORAGE_UNAVAILABLE", f"{uri!r} cannot be used: {error}")
