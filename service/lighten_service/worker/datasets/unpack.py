"""Unpack a compressed stream to disk within limits."""

import errno
from pathlib import Path
from typing import Protocol

from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.worker.datasets.request import Request

CHUNK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Budget:
    """Counts unpacked bytes of one archive and refuses to go on beyond the limits."""

    def __init__(self, request: Request, packed_bytes: int) -> None:
        self._request = request
        self._packed = max(packed_bytes, 1)
        self._unpacked = 0

    def spend(self, count: int, name: str) -> None:
        """Add ``count`` bytes. Raises InvalidArgument (DECOMPRESSION_BOMB)."""
        limits = self._request.limits
        self._unpacked += count
        if self._unpacked > limits.unpacked_bytes:
            raise self._request.refuse(
                "DECOMPRESSION_BOMB",
                f"'{name}' takes the unpacked data beyond {limits.unpacked_bytes} bytes",
            )
        expansion = self._unpacked / self._packed
        if self._unpacked > limits.expansion_floor and expansion > limits.expansion:
            raise self._request.refuse(
                "DECOMPRESSION_BOMB",
                f"'{name}' unpacks to more than {limits.expansion:g} times its packed size; "
                "store the data with less compression",
            )


def unpack(request: Request, source: Readable, target: Path, budget: Budget, name: str) -> Path:
    """Copy a stream to a new file in chunks.

    Raises:
        InvalidArgument: DECOMPRESSION_BOMB.
        ResourceExhausted: SCRATCH_FULL.
    """
    try:
        with target.open("xb") as file:
            while chunk := source.read(CHUNK):
                budget.spend(len(chunk), name)
                file.write(chunk)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise ResourceExhausted(
            "SCRATCH_FULL",
            f"{request.field}: no disk space left to unpack '{name}'; raise "
            "resources.scratch_bytes",
            field="resources.scratch_bytes",
        ) from error
    return target
