"""Moves files to and from signed URLs: streaming, checked, and patient with storage that fails.

A broken connection, a 5xx answer or a server that is gone is tried again with growing pauses, until
``max_seconds`` have gone by without a byte of progress. Files are never held in memory.
"""

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import urllib3

CHUNK_BYTES = 256 * 1024
DEFAULT_MAX_SECONDS = 120.0

# (bytes done, bytes in all or None where the server does not say)
Progress = Callable[[int, int | None], None]
# Called between chunks and during pauses; what it raises ends the transfer.
Check = Callable[[], None]

# For a connection, and for each send.
_CONNECT_SECONDS = 20.0
# Longest silence. A PUT is answered once the bytes are safe on a disk.
_SILENCE_SECONDS = {"GET": 30.0, "PUT": 60.0}
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRYABLE_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "RequestExpired", "URL_EXPIRED"})
_CODE = re.compile(rb'<Code>(\w+)</Code>|"reason":\s*"(\w+)"')


class TransferError(Exception):
    """A transfer that did not succeed.

    Attributes:
        reason: DIGEST_MISMATCH, SIZE_MISMATCH, OBJECT_NOT_FOUND, OBJECT_TOO_LARGE, URL_EXPIRED
            (also: the storage refuses the URL), STORAGE_NOT_TRUSTED (its certificate) or
            STORAGE_UNAVAILABLE.
        message: for a person.
        retryable: the same transfer may succeed later, perhaps with a new URL.
    """

    def __init__(self, reason: str, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str | Callable[[], str],
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    on_progress: Progress | None = None,
    refresh: Callable[[], str] | None = None,
    check: Check | None = None,
    ca: str = "",
    max_seconds: float = DEFAULT_MAX_SECONDS,
) -> str:
    """Fetch a URL into a file, whole or not at all, and return its SHA-256.

    Bytes go to ``<path>.part`` first, which is renamed when length and digest are right. A
    transfer that breaks goes on where it stopped, unless the object has changed meanwhile.

    Args:
        url: the signed URL, or a function that returns a fresh one whenever it is called.
        sha256: expected digest, 64 lower-case hexadecimal digits.
        size: expected length in bytes.
        refresh: returns a new URL after one was refused (403).
        ca: certificates (PEM) to trust for https, besides the system's.
        max_seconds: how long to try without any progress.

    Raises:
        TransferError: see its reasons.
    """
    if callable(url):
        refresh = refresh or url
        url = url()
    path = Path(path)
    part = path.with_name(path.name + ".part")
    attempts = _Attempts(url, refresh, check, ca, max_seconds)
    try:
        with part.open("wb") as file:
            fetch = _Fetch(file, size, on_progress, attempts)
            attempts.run(fetch.run)
            digest = fetch.finish(sha256)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return digest


def upload(
    url: str | Callable[[], str],
    path: str | os.PathLike[str],
    *,
    on_progress: Progress | None = None,
    refresh: Callable[[], str] | None = None,
    check: Check | None = None,
    ca: str = "",
    max_seconds: float = DEFAULT_MAX_SECONDS,
) -> str:
    """Send a file with one PUT and return the ETag of the answer, without quotes.

    Arguments are those of ``download``; a repeated PUT begins anew.

    Raises:
        TransferError: see its reasons.
    """
    if callable(url):
        refresh = refresh or url
        url = url()
    path = Path(path)
    attempts = _Attempts(url, refresh, check, ca, max_seconds)
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        return _put(file, 0, total, attempts, on_progress, total)


def upload_parts(
    part_urls: Sequence[str],
    part_bytes: int,
    path: str | os.PathLike[str],
    *,
    on_progress: Progress | None = None,
    refresh: Callable[[int], str] | None = None,
    check: Check | None = None,
    ca: str = "",
    max_seconds: float = DEFAULT_MAX_SECONDS,
) -> list[str]:
    """Send a file in parts, one after the other, and return their ETags in order.

    Args:
        part_urls: one URL a part, in order.
        part_bytes: length of every part but the last.
        refresh: returns a new URL for part ``number`` (1, 2, 3...) after one was refused.

    Raises:
        TransferError: see its reasons; SIZE_MISMATCH when the file needs another number of parts.
    """
    path = Path(path)
    etags = []
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        needed = max(1, -(-total // part_bytes))
        if needed != len(part_urls):
            raise TransferError(
                "SIZE_MISMATCH",
                f"{path.name} has {total} bytes, {needed} parts of {part_bytes}, "
                f"but {len(part_urls)} URLs were given",
            )
        for index, url in enumerate(part_urls):
            start = index * part_bytes
            fresh = None if refresh is None else _bind(refresh, index + 1)
            attempts = _Attempts(url, fresh, check, ca, max_seconds)
            length = min(part_bytes, total - start)
            etags.append(_put(file, start, length, attempts, on_progress, total))
    return etags


def _bind(refresh: Callable[[int], str], number: int) -> Callable[[], str]:
    return lambda: refresh(number)


class _Attempts:
    """Tries again what may succeed later; the clock starts anew with every progress."""

    def __init__(
        self,
        url: str,
        refresh: Callable[[], str] | None,
        check: Check | None,
        ca: str,
        max_seconds: float,
    ) -> None:
        self.url = url
        self.ca = ca
        self._refresh = refresh
        self._check = check or (lambda: None)
        self._max_seconds = max_seconds
        self.progressed()

    def progressed(self) -> None:
        """Note that bytes have moved, and let the caller stop."""
        self._check()
        self._deadline = time.monotonic() + self._max_seconds
        self._failures = 0
        self._refreshed = False

    def run(self, step: Callable[[], None]) -> None:
        """Call ``step`` until it returns or fails for good. Raises TransferError."""
        while True:
            self._check()
            try:
                step()
            except TransferError as error:
                if error.reason == "URL_EXPIRED" and self._refresh and not self._refreshed:
                    self._refreshed = True
                    self.url = self._refresh()
                elif not error.retryable or not self._pause():
                    raise
            else:
                return

    def _pause(self) -> bool:
        """Sleep before the next try; False when the time is up."""
        longest = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._failures += 1
        wake = time.monotonic() + longest * random.uniform(0.5, 1.0)
        if wake > self._deadline:
            return False
        while (left := wake - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.25))
        return True


class _Fetch:
    """The state of one download over its broken connections."""

    def __init__(
        self, file: BinaryIO, size: int | None, on_progress: Progress | None, attempts: _Attempts
    ) -> None:
        self._file = file
        self._expected = size
        self._on_progress = on_progress
        self._attempts = attempts
        self._etag = ""
        self._total: int | None = None
        self._restart()

    def run(self) -> None:
        """Read from where the last connection broke to the end."""
        headers = {"Accept-Encoding": "identity"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
        with _request("GET", self._attempts, headers) as response:
            self._begin(response)
            while chunk := _read(response):
                self._take(chunk)
        if self._total is not None and self._done < self._total:
            raise TransferError("STORAGE_UNAVAILABLE", "the connection ended early", True)

    def finish(self, sha256: str | None) -> str:
        """Check length and digest, and return the digest."""
        if self._expected is not None and self._done != self._expected:
            raise _size_mismatch(self._expected, self._done)
        digest = self._hash.hexdigest()
        if sha256 is not None and digest != sha256:
            raise TransferError("DIGEST_MISMATCH", f"SHA-256 is {digest}, expected {sha256}")
        return digest

    def _begin(self, response: "urllib3.BaseHTTPResponse") -> None:
        etag = response.headers.get("ETag", "")
        if self._done and (response.status != 206 or etag != self._etag):
            partial = response.status == 206
            self._restart()
            if partial:
                raise TransferError("STORAGE_UNAVAILABLE", "the object has changed", True)
        self._etag = etag
        length = response.headers.get("Content-Length")
        self._total = None if length is None else self._done + int(length)
        expected = self._expected
        if expected is not None and self._total is not None and self._total != expected:
            raise _size_mismatch(expected, self._total)

    def _take(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._done += len(chunk)
        if self._expected is not None and self._done > self._expected:
            raise _size_mismatch(self._expected, self._done)
        self._attempts.progressed()
        if self._on_progress:
            self._on_progress(self._done, self._total)

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self._done = 0
        self._total = None


class _Slice:
    """A part of a file as the body of one PUT."""

    def __init__(self, file: BinaryIO, start: int, length: int, moved: Callable[[int], None]):
        file.seek(start)
        self._file = file
        self._length = length
        self._left = length
        self._moved = moved

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        chunk = self._file.read(wanted)
        if len(chunk) < wanted:
            raise TransferError("SIZE_MISMATCH", "the file became shorter during the upload")
        self._left -= len(chunk)
        self._moved(self._length - self._left)
        return chunk


def _put(
    file: BinaryIO,
    start: int,
    length: int,
    attempts: _Attempts,
    on_progress: Progress | None,
    total: int,
) -> str:
    etag = ""
    furthest = 0

    def moved(done: int) -> None:
        nonlocal furthest
        # Bytes that go into a socket's buffer again and again are no progress.
        if done > furthest:
            furthest = done
            attempts.progressed()
        if on_progress:
            on_progress(start + done, total)

    def send() -> None:
        nonlocal etag
        headers = {"Content-Length": str(length)}
        body = _Slice(file, start, length, moved)
        with _request("PUT", attempts, headers, body) as response:
            etag = response.headers.get("ETag", "").strip('"')

    attempts.run(send)
    return etag


def _request(
    method: str, attempts: _Attempts, headers: dict[str, str], body: _Slice | None = None
) -> "closing[urllib3.BaseHTTPResponse]":
    """Open a request; a response other than success is raised as TransferError."""
    import urllib3

    with _network_errors():
        response = _pool(attempts.ca).urlopen(
            method,
            attempts.url,
            headers=headers,
            body=body,
            preload_content=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_SILENCE_SECONDS[method]),
        )
        if response.status not in (200, 201, 204, 206):
            with closing(response):
                raise _refused(method, response)
    return closing(response)


def _read(response: "urllib3.BaseHTTPResponse") -> bytes:
    with _network_errors():
        return response.read(CHUNK_BYTES)


@contextmanager
def _network_errors() -> Iterator[None]:
    import ssl

    from urllib3.exceptions import HTTPError, LocationValueError

    try:
        yield
    except LocationValueError as error:
        raise TransferError("OBJECT_NOT_FOUND", f"not a URL that can be read: {error}") from error
    except (HTTPError, OSError) as error:
        if isinstance(error.args and error.args[0], ssl.SSLCertVerificationError):
            message = f"storage shows a certificate that cannot be trusted: {error.args[0]}"
            raise TransferError("STORAGE_NOT_TRUSTED", message) from error
        raise TransferError(
            "STORAGE_UNAVAILABLE", f"storage cannot be reached: {error}", True
        ) from error


def _refused(method: str, response: "urllib3.BaseHTTPResponse") -> TransferError:
    match = _CODE.search(response.read(4096))
    code = (match[1] or match[2]).decode() if match else ""
    answer = f"storage answered {method} with {response.status} {code}".rstrip()
    if response.status == 403 or code in _EXPIRED_CODES:
        return TransferError("URL_EXPIRED", f"{answer}: the signed URL has expired or is not valid")
    if response.status == 404:
        return TransferError("OBJECT_NOT_FOUND", answer)
    if response.status == 413:
        return TransferError("OBJECT_TOO_LARGE", answer)
    retryable = response.status in _RETRYABLE_STATUS or code in _RETRYABLE_CODES
    return TransferError("STORAGE_UNAVAILABLE", answer, retryable)


def _size_mismatch(expected: int, actual: int) -> TransferError:
    return TransferError("SIZE_MISMATCH", f"{actual} bytes, expected {expected}")


@cache
def _pool(ca: str) -> "urllib3.PoolManager":
    import ssl

    import urllib3

    options: dict[str, Any] = {}
    if ca:
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=ca)
        options["ssl_context"] = context
    return urllib3.PoolManager(retries=False, blocksize=CHUNK_BYTES, maxsize=8, **options)
