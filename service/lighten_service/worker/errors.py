"""Errors on their way in (answers of the server) and out (what a job stores)."""

import logging
import secrets
import sys
from collections.abc import Mapping
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lighten import v1 as pb
from lighten_service.jobs import errors

_log = logging.getLogger(__name__)

_CLASSES: Mapping[grpc.StatusCode, type[errors.LightenError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
}

OUT_OF_MEMORY_ADVICE = (
    "the worker ran out of memory; ask for more with resources.memory_bytes, or make batch_size "
    "smaller"
)

# What allocators say when they do not raise a type of their own.
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "out of memory", "failed to allocate memory")


def from_rpc(error: grpc.aio.AioRpcError) -> errors.LightenError:
    """Return the typed error that the server sent."""
    kind = _CLASSES.get(error.code(), errors.Internal)
    reason, message, fields = error.code().name, error.details() or "no details", []
    metadata: dict[str, str] = {}
    status = rpc_status.from_call(cast("grpc.Call", error))
    for detail in status.details if status is not None else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            fields = [
                errors.Violation(violation.field, violation.description)
                for violation in bad_request.field_violations
            ]
    return kind(reason, message, violations=fields, metadata=metadata)


def to_job_error(error: BaseException, stage: pb.Stage | None) -> pb.JobError:
    """Return what the job stores of an error that ended its attempt.

    ``stage`` is where the attempt was, for errors that do not know it. An error that nobody
    foresaw becomes INTERNAL with a reference; its traceback goes to the log under that reference
    and nowhere else.
    """
    reference = ""
    if isinstance(error, errors.LightenError):
        known = error
    elif is_out_of_memory(error):
        known = errors.ResourceExhausted("OUT_OF_MEMORY", OUT_OF_MEMORY_ADVICE)
    elif _from_onnxruntime(error):
        known = errors.FailedPrecondition(
            "RUNTIME_REFUSED_INPUT",
            "ONNX Runtime cannot run the model on these samples: "
            f"{' '.join(str(error).split())[-300:]}; check ids, ranges and shapes of the data",
        )
    else:
        reference = secrets.token_hex(8)
        _log.error("attempt failed, reference %s", reference, exc_info=error)
        known = errors.Internal(
            "INTERNAL",
            f"the worker failed unexpectedly; the operator's log has the fault as {reference}",
            retryable=True,
        )
    known.stage = known.stage or stage
    return known.to_job_error(reference)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory (of the host or of a GPU) is used up."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    native = isinstance(error, RuntimeError) or _from_onnxruntime(error)
    return native and any(word in text for word in _OUT_OF_MEMORY_WORDS)


def _from_onnxruntime(error: BaseException) -> bool:
    """Whether ONNX Runtime raised it; its classes have no base of their own."""
    return type(error).__module__.startswith("onnxruntime.")
