"""The one table from Lighten's errors to gRPC statuses, and how the details are packed."""

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from lighten import v1 as pb
from lighten_service.jobs import errors
from lighten_service.jobs.errors import LightenError, Violation

DOMAIN: Final = "lighten"

CODES: Final[dict[type[LightenError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
}

# The server has tried these again itself, for as long as a caller waits. A negative pushback tells
# gRPC's retry policy to leave it at that (gRFC A6).
_TRIED: Final = frozenset({"STORAGE_UNAVAILABLE"})
_NO_RETRY: Final = (("grpc-retry-pushback-ms", "-1"),)
_RETRY_SECONDS: Final = 1
# A status travels in a header, which peers limit to 8 KiB in all, base64 and message included.
_MESSAGE_BYTES: Final = 1024
_VIOLATION_BYTES: Final = 2048
_METADATA_BYTES: Final = 512


def code_of(error: LightenError) -> grpc.StatusCode:
    """Return the status of an error by its class, or the nearest base class in the table."""
    return next(
        (CODES[base] for base in type(error).__mro__ if base in CODES), grpc.StatusCode.INTERNAL
    )


def status_of(error: LightenError) -> Status:
    """Return an error with its ErrorInfo, BadRequest and RetryInfo, cut to what a header holds."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata=_metadata_of(error)
        )
    ]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(
                field=item.field, description=item.description
            )
            for item in _fitting(error.violations)
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if isinstance(error, errors.Unavailable):
        delay = Duration(seconds=_RETRY_SECONDS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = code_of(error).value[0]
    return Status(code=code, message=_cut(error.message, _MESSAGE_BYTES), details=_packed(details))


def retry_pushback(error: LightenError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata that says whether gRPC may try the call again by itself."""
    return _NO_RETRY if error.reason in _TRIED else ()


def _metadata_of(error: LightenError) -> dict[str, str]:
    kind = pb.ErrorKind.Name(error.kind).removeprefix("ERROR_KIND_")
    facts = {key: _cut(value, _METADATA_BYTES) for key, value in error.metadata.items()}
    return {"kind": kind, "retryable": str(error.retryable).lower(), **facts}


def _fitting(violations: Iterable[Violation]) -> Iterable[Violation]:
    """Yield as many as fit, then how many are left out."""
    left = _VIOLATION_BYTES
    waiting = list(violations)
    while waiting:
        item = Violation(_cut(waiting[0].field, 256), _cut(waiting[0].description, 512))
        left -= len(item.field.encode()) + len(item.description.encode())
        if left < 0:
            break
        yield item
        waiting.pop(0)
    if waiting:
        yield Violation(waiting[0].field, f"is at fault too, and {len(waiting) - 1} more fields")


def _packed(details: Iterable[Message]) -> list[AnyMessage]:
    packed = []
    for detail in details:
        envelope = AnyMessage()
        envelope.Pack(detail)
        packed.append(envelope)
    return packed


def _cut(text: str, most: int) -> str:
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"
