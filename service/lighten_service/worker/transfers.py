"""Turns a failed transfer into the error that a job stores."""

from collections.abc import Iterator
from contextlib import contextmanager

from lighten.transfer import TransferError
from lighten_service.jobs.errors import (
    FailedPrecondition,
    InvalidArgument,
    LightenError,
    NotFound,
    Unavailable,
)

_CLASSES: dict[str, type[LightenError]] = {
    "DIGEST_MISMATCH": InvalidArgument,
    "SIZE_MISMATCH": FailedPrecondition,
    "OBJECT_NOT_FOUND": NotFound,
}


@contextmanager
def as_lighten_error(field: str, uri: str) -> Iterator[None]:
    """Raise LightenError with the field and the object at fault in place of TransferError."""
    try:
        yield
    except TransferError as error:
        kind = _CLASSES.get(error.reason, Unavailable)
        raise kind(
            error.reason,
            f"{uri}: {error.message}",
            field=field if kind is not Unavailable else "",
            metadata={"uri": uri},
        ) from error
