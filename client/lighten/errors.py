"""Every error that the SDK raises on purpose.

The classes follow the gRPC statuses. Each carries the server's stable ``reason``, a message for a
person, and the fields at fault where the request can be mended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lighten import v1 as pb


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request or spec, and what to change."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class LightenError(Exception):
    """Base of the tree.

    Attributes:
        reason: stable name for programs, for example ``JOB_NOT_FOUND``.
        message: what happened and what to change, for a person.
        violations: fields at fault, empty where no field is.
        metadata: facts for programs; ``reference`` finds an internal fault in the server's log.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    @property
    def field(self) -> str:
        """Path of the first field at fault, or an empty string."""
        return self.violations[0].field if self.violations else ""

    def __str__(self) -> str:
        others = [str(item) for item in self.violations if item.description != self.message]
        return "\n  ".join([self.message, *others])


class InvalidArgument(LightenError):
    """The request breaks a rule; ``violations`` name the fields."""


class InvalidSpec(InvalidArgument):
    """A spec cannot be read: found here, before anything is sent."""


class NotFound(LightenError):
    """Something that the request names does not exist, or not for this caller."""


class AlreadyExists(LightenError):
    """The request id was used with another request."""


class FailedPrecondition(LightenError):
    """The request is fine, the state of what it names is not."""


class OutOfRange(LightenError):
    """A position beyond the end."""


class PermissionDenied(LightenError):
    """The caller may not do this."""


class Unauthenticated(LightenError):
    """No credentials, or ones that are not good any more."""


class ResourceExhausted(LightenError):
    """A limit of the server is reached."""


class Unavailable(LightenError):
    """The server or a part of it is out of reach; the same request may succeed later."""


class DeadlineExceeded(LightenError):
    """The time given was over before the answer came."""


class Cancelled(LightenError):
    """The call was given up before its answer came."""


class Unimplemented(LightenError):
    """The server does not know this call: it is older than this client."""


class Internal(LightenError):
    """A fault of the server. ``metadata["reference"]`` finds it in the operator's log."""


class TransferError(LightenError):
    """A file could not be read, written or moved, or does not have the digest it should have."""


class ExportFailed(LightenError):
    """A module cannot be written as ONNX that computes the same; nothing was uploaded."""


class JobFailed(LightenError):
    """A job ended without a result; ``error`` says why, ``job`` is its last state."""

    def __init__(self, job: "pb.Job") -> None:
        error = job.error
        violations = (Violation(error.field, error.message),) if error.field else ()
        metadata = dict(error.metadata)
        if error.reference:
            metadata["reference"] = error.reference
        super().__init__(
            error.message or f"{job.name} failed",
            reason=error.reason,
            violations=violations,
            metadata=metadata,
        )
        self.job = job
        self.error = error


class JobCancelled(LightenError):
    """A job was cancelled, so it has no result."""

    def __init__(self, job: "pb.Job") -> None:
        super().__init__(f"{job.name} was cancelled", reason="JOB_CANCELLED")
        self.job = job
        self.error = job.error
