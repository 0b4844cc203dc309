"""SHA-256 of what streams by."""

import hashlib

from lighten_service.jobs.errors import InvalidArgument


class Digest:
    """Compares a stream with the digest that it should have; costs nothing without one."""

    def __init__(self, expected: str | None) -> None:
        self._expected = expected
        self._hash = hashlib.sha256()

    def update(self, data: bytes) -> None:
        if self._expected is not None:
            self._hash.update(data)

    def check(self, uri: str) -> None:
        """Raise InvalidArgument (DIGEST_MISMATCH) unless the digest is the expected one."""
        if self._expected is not None and self._hash.hexdigest() != self._expected:
            raise InvalidArgument(
                "DIGEST_MISMATCH",
                f"the SHA-256 of the data for {uri!r} is {self._hash.hexdigest()}, "
                f"expected {self._expected}; nothing was stored",
            )
