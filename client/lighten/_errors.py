"""From a gRPC status with its details to one error of ``lighten.errors``."""

from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from lighten import errors
from lighten._access import Access

_CLASSES: dict[grpc.StatusCode, type[errors.LightenError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
}
_DETAILS_KEY = "grpc-status-details-bin"
# Statuses that the transport makes up when a connection breaks in the middle of a stream.
_BROKEN = (errors.Internal, errors.Cancelled, errors.Unavailable)


def from_rpc_error(error: grpc.RpcError, target: str) -> errors.LightenError:
    """Return the typed error; ``target`` is named where the server could not be reached."""
    # Every RpcError that a call raises is the call itself, and has its status.
    call = cast("grpc.Call", error)
    code, message = call.code(), call.details() or ""
    info, violations = _details(call)
    kind = _CLASSES.get(code, errors.Internal)
    if not info.reason:
        message = _transport_message(kind, message, target)
    return kind(
        message or code.name,
        reason=info.reason or _transport_reason(code, kind),
        violations=violations,
        metadata=dict(info.metadata),
    )


def explain(error: errors.LightenError, access: Access) -> errors.LightenError:
    """Return what keeps a server that is there from being reached, or the error as it is. Takes a
    second or two where the transport failed.
    """
    if error.reason != "TRANSPORT_UNAVAILABLE":
        return error
    # Imported where it is used: most calls never fail so.
    from lighten._diagnosis import diagnose

    return diagnose(access) or error


def is_transient(error: errors.LightenError) -> bool:
    """Whether a stream that ended with this error may go on after a reconnect."""
    if isinstance(error, errors.Unavailable):
        return True
    # The service names a reason for every error of its own.
    return isinstance(error, _BROKEN) and error.reason.startswith("TRANSPORT_")


def _transport_reason(code: grpc.StatusCode, kind: type[errors.LightenError]) -> str:
    return f"TRANSPORT_{code.name}" if kind in _BROKEN else code.name


def _transport_message(kind: type[errors.LightenError], message: str, target: str) -> str:
    if kind is errors.Unavailable:
        return f"cannot reach a Lighten server at {target}: {message}"
    if kind is errors.DeadlineExceeded:
        return f"no answer from {target} within the time given"
    if kind is errors.Unimplemented:
        return f"the server at {target} does not know this call; is it an older one? ({message})"
    return message


def _details(
    call: grpc.Call,
) -> tuple[error_details_pb2.ErrorInfo, tuple[errors.Violation, ...]]:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in _rich_status(call).details:
        # Unpack leaves a message of another type as it is.
        detail.Unpack(info)
        detail.Unpack(bad_request)
    violations = tuple(
        errors.Violation(item.field, item.description) for item in bad_request.field_violations
    )
    return info, violations


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
