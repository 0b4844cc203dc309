"""Every error that Lighten raises on purpose.

An error says what happened for a person (``message``), for a program (``reason``, upper case and
stable) and whose fault it is (``kind``). The edge maps the class to a gRPC status in one table; a
job that fails stores ``to_job_error()``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lighten import v1 as pb


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request, and what to change."""

    field: str
    description: str


class LightenError(Exception):
    """Base of the tree.

    Attributes:
        reason: stable name for programs, for example ``DIGEST_MISMATCH``.
        message: for a person; says what to change where that is known.
        kind: USER, SYSTEM or RESOURCE.
        retryable: the same request may succeed later.
        violations: fields at fault, empty where no field is.
        metadata: facts for programs.
        stage: where in a job it arose, once that is known.
    """

    kind: pb.ErrorKind.ValueType = pb.ERROR_KIND_SYSTEM
    retryable: bool = False

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        kind: pb.ErrorKind.ValueType | None = None,
        retryable: bool | None = None,
        field: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.kind = self.kind if kind is None else kind
        self.retryable = self.retryable if retryable is None else retryable
        self.violations = tuple(violations) or ((Violation(field, message),) if field else ())
        self.metadata = dict(metadata or {})
        self.stage: pb.Stage | None = None

    @property
    def field(self) -> str:
        """Path of the first field at fault, or an empty string."""
        return self.violations[0].field if self.violations else ""

    def to_job_error(self, reference: str = "") -> pb.JobError:
        """Return the error as a job stores it."""
        return pb.JobError(
            reason=self.reason,
            kind=self.kind,
            retryable=self.retryable,
            message=self.message,
            field=self.field,
            stage=self.stage,
            metadata=self.metadata,
            reference=reference,
        )


class InvalidArgument(LightenError):
    """The request breaks a rule whatever the state of the system."""

    kind = pb.ERROR_KIND_USER


class NotFound(LightenError):
    """Something that the request names does not exist, or not for this caller."""

    kind = pb.ERROR_KIND_USER


class AlreadyExists(LightenError):
    """Something with this name exists and differs."""

    kind = pb.ERROR_KIND_USER


class FailedPrecondition(LightenError):
    """The request is fine, the state of what it names is not."""

    kind = pb.ERROR_KIND_USER


class OutOfRange(LightenError):
    """A position beyond the end."""

    kind = pb.ERROR_KIND_USER


class PermissionDenied(LightenError):
    """The caller may not do this."""

    kind = pb.ERROR_KIND_USER


class Unauthenticated(LightenError):
    """No credentials, or ones that are not good any more."""

    kind = pb.ERROR_KIND_USER


class ResourceExhausted(LightenError):
    """A limit is reached: memory, disk, time, queue length."""

    kind = pb.ERROR_KIND_RESOURCE


class Unavailable(LightenError):
    """A part of the system is out of reach; the same request may succeed later."""

    kind = pb.ERROR_KIND_SYSTEM
    retryable = True


class LaunchDelayed(Unavailable):
    """No worker can be started now, for a reason that may pass; the job waits in the queue."""


class Internal(LightenError):
    """A fault of Lighten's own. ``metadata["reference"]`` finds the traceback in the log."""

    kind = pb.ERROR_KIND_SYSTEM


def invalid(reason: str, violations: Sequence[Violation]) -> InvalidArgument:
    """Return the error for one or more fields at fault, its message naming each."""
    message = "; ".join(f"{item.field}: {item.description}" for item in violations)
    return InvalidArgument(reason, message, violations=violations)
