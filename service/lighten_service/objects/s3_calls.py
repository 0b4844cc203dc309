"""Calls of the blocking S3 client: in threads, tried again, with typed errors."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, S3Error, ServerError
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)
from urllib3.exceptions import HTTPError, SSLError

from lighten_service.jobs.errors import (
    InvalidArgument,
    LightenError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unavailable,
)

T = TypeVar("T")

_FORBIDDEN_CODES = frozenset({
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
})  # fmt: skip
_PART_CODES = frozenset({"EntityTooSmall", "InvalidPart", "InvalidPartOrder"})
_RETRYABLE_CODES = frozenset({
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "TooManyRequests",
})  # fmt: skip
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


class S3Calls:
    """Runs calls in a bounded pool of threads.

    Args:
        threads: calls at once.
        retry_seconds: how long a call that fails is tried again; one that hangs adds the
            client's own timeout.
    """

    def __init__(self, threads: int, retry_seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3")
        self._retry_seconds = retry_seconds

    async def once(self, call: Callable[[], T]) -> T:
        """Run a call in a thread; what it raises passes unchanged."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def run(self, uri: str, call: Callable[[], T]) -> T:
        """Run a call in a thread, again while that may help. Raises typed errors that name uri."""
        try:
            # Not AsyncRetrying()(call): its state would keep the bytes of a part alive.
            async for attempt in self._retrying():
                with attempt:
                    return await self.once(call)
        except CLIENT_ERRORS as error:
            raise typed_error(uri, error) from error
        raise AssertionError("tenacity ends with a result or the last error")

    def _retrying(self) -> AsyncRetrying:
        """Return the policy: growing random pauses, only for what may succeed later."""
        return AsyncRetrying(
            retry=retry_if_exception(is_retryable),
            wait=wait_random_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(self._retry_seconds),
            reraise=True,
        )

    def close(self) -> None:
        """Let running calls end by themselves and start no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


# ParseError: an answer that was cut short.
CLIENT_ERRORS = (S3Error, ServerError, InvalidResponseError, HTTPError, OSError, ParseError)


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later: connections, 5xx and requests to slow down."""
    match error:
        case S3Error():
            return error.code in _RETRYABLE_CODES or error.response.status >= 500
        case ServerError():
            return error.status_code >= 500
        case InvalidResponseError():
            return _status(error) >= 500
        case SSLError():
            return False
        case HTTPError() | ConnectionError() | TimeoutError() | ParseError():
            return True
    return False


def typed_error(uri: str, error: Exception) -> LightenError:
    """Return the error of the domain for one of the S3 client."""
    code = (error.code or "") if isinstance(error, S3Error) else ""
    if not code and _status(error) == 403:
        code = "AccessDenied"
    brief = (error.message if isinstance(error, S3Error) else str(error)) or "no details"
    return typed_error_of_code(
        uri, code, f"{type(error).__name__}: {brief[:300]}", retryable=is_retryable(error)
    )


def typed_error_of_code(
    uri: str, code: str, details: str = "", *, retryable: bool = True
) -> LightenError:
    """Return the error of the domain for a code of the S3 protocol."""
    if code == "NoSuchBucket":
        return NotFound("BUCKET_NOT_FOUND", f"the bucket of {uri!r} does not exist")
    if code == "NoSuchKey":
        return NotFound("OBJECT_NOT_FOUND", f"there is no object {uri!r}")
    if code == "NoSuchUpload":
        return NotFound("UPLOAD_NOT_FOUND", f"there is no such upload of {uri!r}; begin a new one")
    if code in _PART_CODES:
        return InvalidArgument("INVALID_PART", f"the parts of {uri!r} cannot be joined: {code}")
    if code == "InvalidRange":
        return OutOfRange("RANGE_NOT_SATISFIABLE", f"{uri!r} is shorter than the range asked for")
    if code == "PreconditionFailed":
        return Unavailable(
            "STORAGE_UNAVAILABLE", f"{uri!r} was replaced while it was read; read it again"
        )
    if code in _FORBIDDEN_CODES:
        return PermissionDenied(
            "OBJECT_FORBIDDEN",
            f"storage refuses {uri!r} ({code}): check what the server's credentials allow",
        )
    return Unavailable(
        "STORAGE_UNAVAILABLE",
        f"storage failed for {uri!r}: {' '.join(filter(None, (code, details)))}",
        retryable=retryable,
    )


def _status(error: Exception) -> int:
    match error:
        case S3Error():
            return error.response.status
        case ServerError():
            return error.status_code
        case InvalidResponseError():
            return int(error._code)  # it has no public name
    return 0
