"""Object URIs in one canonical form.

``s3://bucket/key``: the key is literal, as in every S3 tool. ``file:///path``: percent escapes are
decoded, as ``Path.as_uri`` writes them. A URI that ends with ``/`` is a folder.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from lighten_service.jobs.errors import InvalidArgument

# Names of the local folder's own files: parts and files being written.
RESERVED_PREFIX = ".lighten-"

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)(/?.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object or folder lies.

    Attributes:
        scheme: ``s3`` or ``file``.
        bucket: of S3; empty for files.
        key: names joined by ``/``, without one at the start; ends with ``/`` for a folder.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def is_folder(self) -> bool:
        return not self.key or self.key.endswith("/")

    @property
    def names(self) -> tuple[str, ...]:
        """The segments of the key."""
        return tuple(name for name in self.key.split("/") if name)

    @property
    def uri(self) -> str:
        """The canonical URI."""
        key = self.key if self.scheme == "s3" else self.key.replace("%", "%25")
        return f"{self.scheme}://{self.bucket}/{key}"

    def contains(self, other: "Location") -> bool:
        """Whether ``other`` is this place or lies below it, compared by whole names."""
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return False
        mine, theirs = self.key.removesuffix("/"), other.key.removesuffix("/")
        return not mine or theirs == mine or theirs.startswith(mine + "/")


# A request's URIs are read at every step: may the project, is it there, what is its URL.
@lru_cache(maxsize=256)
def parse(uri: str) -> Location:
    """Return where a URI points, in canonical form.

    Raises:
        InvalidArgument: reason INVALID_URI; another form, a scheme other than ``s3`` and ``file``,
            or a path with ``.``, ``..``, empty or reserved names, backslashes or
            control characters.
    """
    match = _SCHEME.fullmatch(uri)
    if match is None:
        raise invalid_uri(uri, "write s3://bucket/key or file:///absolute/path")
    scheme, authority, path = match.groups()
    if scheme == "s3":
        if not _BUCKET.fullmatch(authority):
            raise invalid_uri(uri, f"{authority!r} is not a bucket name")
    elif scheme == "file":
        if authority not in ("", "localhost") or not path:
            raise invalid_uri(uri, "write file:///absolute/path, with three slashes")
        authority, path = "", _decoded(uri, path)
    else:
        raise invalid_uri(uri, f"the scheme {scheme}:// is not known; use s3:// or file://")
    key = path.removeprefix("/")
    _check_names(uri, key)
    return Location(scheme, authority, key)


def parse_folder(uri: str) -> Location:
    """Parse a URI that must end with ``/``. Raises InvalidArgument (INVALID_URI)."""
    location = parse(uri)
    if not location.is_folder:
        raise invalid_uri(uri, "a folder ends with /")
    return location


def parse_object(uri: str) -> Location:
    """Parse a URI that must name an object. Raises InvalidArgument (INVALID_URI)."""
    location = parse(uri)
    if location.is_folder:
        raise invalid_uri(uri, "this names a folder, not an object")
    return location


def of_folder(path: Path) -> Location:
    """Return the location of a folder of this machine."""
    # Not resolve(): URIs name a folder as the operator wrote it, also one behind a link.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    return Location("file", "", "".join(f"{name}/" for name in absolute.parts[1:]))


def join(folder: str, path: str) -> str:
    """Return the URI of a literal path below a folder's URI."""
    if folder.startswith("file:"):
        path = path.replace("%", "%25")
    return f"{folder.removesuffix('/')}/{path}"


def invalid_uri(uri: str, why: str) -> InvalidArgument:
    return InvalidArgument("INVALID_URI", f"{uri!r} cannot be used: {why}")


def _decoded(uri: str, path: str) -> str:
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise invalid_uri(uri, "its escapes are not UTF-8") from error


def _check_names(uri: str, key: str) -> None:
    # Some S3 servers take a backslash for a slash, and so `..\\` for a way out of a prefix.
    if _FORBIDDEN.search(key):
        raise invalid_uri(uri, "backslashes and control characters are not allowed")
    names = key.split("/")
    for name in names[:-1] if names[-1] == "" else names:
        if name in ("", ".", ".."):
            raise invalid_uri(uri, "empty names, '.' and '..' are not allowed in the path")
        if name.startswith(RESERVED_PREFIX):
            raise invalid_uri(uri, f"names that begin with {RESERVED_PREFIX} are reserved")
