"""Files of the local folder, read and written from asyncio."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import BinaryIO, Self

from lighten_service.jobs.ports import ObjectInfo
from lighten_service.objects import folders
from lighten_service.objects.accounting import Accounting
from lighten_service.objects.digests import Digest

CHUNK_BYTES = 1024 * 1024


def info(uri: str, status: os.stat_result) -> ObjectInfo:
    """Describe a file as an object."""
    return ObjectInfo(uri, status.st_size, folders.etag_of(status))


class OpenObject:
    """An object open for reading: its content stays the same while others replace it."""

    def __init__(self, uri: str, file: BinaryIO, accounting: Accounting) -> None:
        self._uri = uri
        # Its own lock makes it safe to close while a thread that nobody waits for still reads.
        self._file = file
        self._accounting = accounting
        self.info = info(uri, os.fstat(file.fileno()))

    async def chunks(self, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield content from ``offset``, at most ``length`` bytes."""
        left = max(0, self.info.bytes - offset)
        left = left if length is None else min(left, length)
        self._file.seek(offset)
        while left > 0 and (chunk := await asyncio.to_thread(self._read, min(CHUNK_BYTES, left))):
            left -= len(chunk)
            self._accounting.read(len(chunk))
            yield chunk

    def _read(self, size: int) -> bytes:
        with folders.errors_of(self._uri):
            return self._file.read(size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


async def store(
    uri: str,
    create: Callable[[], folders.NewFile],
    chunks: AsyncIterator[bytes],
    digest: Digest,
    accounting: Accounting,
) -> ObjectInfo:
    """Write chunks to a new file; it appears when all are there and the digest is right."""

    def write(chunk: bytes) -> None:
        with folders.errors_of(uri):
            file.write(chunk)
        digest.update(chunk)

    def commit() -> os.stat_result:
        with folders.errors_of(uri):
            return file.commit()

    def create_file() -> folders.NewFile:
        with folders.errors_of(uri):
            return create()

    file = await asyncio.to_thread(create_file)
    try:
        async for chunk in chunks:
            await asyncio.to_thread(write, chunk)
            accounting.wrote(len(chunk))
        digest.check(uri)
        return info(uri, await asyncio.to_thread(commit))
    finally:
        file.discard()
