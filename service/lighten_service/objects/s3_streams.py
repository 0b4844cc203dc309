"""One S3 object read or written as a stream, in bounded memory."""

from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO

from minio import Minio
from urllib3 import BaseHTTPResponse

from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.objects import s3_multipart
from lighten_service.objects.digests import Digest
from lighten_service.objects.s3_calls import CLIENT_ERRORS, S3Calls
from lighten_service.objects.uri import Location

CHUNK_BYTES = 1024 * 1024
# Held in memory for each write under way. S3 takes 5 MiB to 5 GiB.
PART_BYTES = 16 * 1024 * 1024
MAX_PARTS = 10_000


class ObjectReader:
    """Reads an object chunk by chunk; after an error the next call goes on where it stopped.

    Blocking. A reader sticks to the object that it opened first: where that was replaced, the
    call raises S3Error (PreconditionFailed).
    """

    def __init__(self, client: Minio, location: Location, offset: int, length: int | None) -> None:
        self._client = client
        self._location = location
        self._position = offset
        self._left = length
        self._etag = ""
        self._response: BaseHTTPResponse | None = None

    def next_chunk(self) -> bytes:
        """Return up to 1 MiB, empty at the end."""
        if self._left == 0:
            return b""
        try:
            response = self._response = self._response or self._open()
            wanted = CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left)
            chunk = response.read(wanted)
        except CLIENT_ERRORS:
            self.close()
            raise
        self._position += len(chunk)
        if self._left is not None:
            # An object that is shorter than asked for ends the stream.
            self._left = self._left - len(chunk) if chunk else 0
        return chunk

    def close(self) -> None:
        """Give the connection up. The reader may be used again."""
        response, self._response = self._response, None
        if response is not None:
            response.close()
            response.release_conn()

    def _open(self) -> BaseHTTPResponse:
        response = self._client.get_object(
            self._location.bucket,
            self._location.key,
            offset=self._position,
            length=self._left or 0,
            request_headers={"If-Match": self._etag} if self._etag else None,
        )
        self._etag = response.headers.get("ETag", "")
        return response


class ObjectWriter:
    """Writes an object that appears when it is complete, or never.

    Small objects are one PUT, others a multi-part upload that is joined at the end.
    """

    def __init__(self, calls: S3Calls, client: Minio, location: Location, digest: Digest) -> None:
        self._calls = calls
        self._client = client
        self._location = location
        self._digest = digest
        self._upload_id = ""
        self._etags: list[str] = []
        self.bytes = 0

    async def write(self, chunks: AsyncIterator[bytes]) -> str:
        """Store all chunks and return the ETag.

        Raises:
            InvalidArgument: reason DIGEST_MISMATCH; nothing is stored.
            ResourceExhausted: reason OBJECT_TOO_LARGE; longer than 160,000 MiB.
        """
        try:
            # Not a bytearray: growing one holds its content twice.
            pending: list[bytes] = []
            missing = PART_BYTES
            async for chunk in chunks:
                rest = chunk
                while len(rest) >= missing:
                    pending.append(rest[:missing])
                    rest = rest[missing:]
                    await self._put_part(_drain(pending))
                    missing = PART_BYTES
                pending.append(rest)
                missing -= len(rest)
            return await self._finish(_drain(pending))
        except BaseException:
            await self._abort()
            raise

    async def _put_part(self, data: bytes) -> None:
        number = len(self._etags) + 1
        if number > MAX_PARTS:
            raise ResourceExhausted(
                "OBJECT_TOO_LARGE", f"{self._location.uri!r} needs more than {MAX_PARTS} parts"
            )
        await self._hash(data)
        bucket, key = self._location.bucket, self._location.key
        if not self._upload_id:
            self._upload_id = await self._calls.run(
                self._location.uri, lambda: s3_multipart.begin(self._client, bucket, key)
            )
        etag = await self._calls.run(
            self._location.uri,
            lambda: s3_multipart.put_part(self._client, bucket, key, self._upload_id, number, data),
        )
        self._etags.append(etag)

    async def _finish(self, rest: bytes) -> str:
        bucket, key = self._location.bucket, self._location.key
        if self._upload_id and rest:
            await self._put_part(rest)
        if self._upload_id:
            self._digest.check(self._location.uri)
            return await self._calls.run(
                self._location.uri,
                lambda: s3_multipart.complete(
                    self._client, bucket, key, self._upload_id, self._etags
                ),
            )
        await self._hash(rest)
        self._digest.check(self._location.uri)
        result = await self._calls.run(
            self._location.uri,
            lambda: self._client.put_object(bucket, key, BytesIO(rest), len(rest)),
        )
        return result.etag or ""

    async def _hash(self, data: bytes) -> None:
        await self._calls.once(lambda: self._digest.update(data))
        self.bytes += len(data)

    async def _abort(self) -> None:
        if self._upload_id:
            # One try: what is left over is for the bucket's lifecycle rule to remove.
            with suppress(*CLIENT_ERRORS):
                await self._calls.once(
                    lambda: s3_multipart.abort(
                        self._client, self._location.bucket, self._location.key, self._upload_id
                    )
                )


def _drain(pending: list[bytes]) -> bytes:
    joined = b"".join(pending)
    pending.clear()
    return joined
