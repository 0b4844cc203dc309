"""Objects in S3 or a server that speaks its protocol (``s3://``)."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TypeVar
from urllib.parse import urlsplit

from minio import Minio
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from urllib3 import PoolManager, Timeout

from lighten_service.jobs.errors import LightenError, NotFound, OutOfRange
from lighten_service.jobs.ports import Audience, ObjectInfo
from lighten_service.objects import s3_multipart
from lighten_service.objects import uri as uris
from lighten_service.objects.accounting import Accounting
from lighten_service.objects.digests import Digest
from lighten_service.objects.s3_calls import S3Calls, typed_error_of_code
from lighten_service.objects.s3_streams import ObjectReader, ObjectWriter
from lighten_service.telemetry.metrics import Metrics

T = TypeVar("T")

# S3 answers at most this many names, and deletes as many, in one request.
_BATCH = 1000
_LONGEST_EXPIRY_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach S3.

    Attributes:
        endpoint: ``http(s)://host[:port]`` at which this server reaches S3.
        public_endpoint: the same for URLs given to callers; empty: ``endpoint``.
        worker_endpoint: the same for URLs given to workers; empty: ``endpoint``.
        region: part of every signature.
        session_token: of temporary credentials; may be empty.
        threads: calls at once.
        retry_seconds: how long a call that fails is tried again.
        timeout_seconds: longest silence of a connection.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    public_endpoint: str = ""
    worker_endpoint: str = ""
    region: str = "us-east-1"
    threads: int = 16
    # Together below the 30 s that a client waits for an answer.
    retry_seconds: float = 10.0
    timeout_seconds: float = 10.0


class S3ObjectStore:
    """The ObjectStore over S3.

    ``sign_get`` gives URLs for GET alone: the method is part of an S3 signature. Objects are
    listed in the order of the server: by name in S3, by folder in SeaweedFS.

    Raises:
        ValueError: an endpoint is not ``http(s)://host[:port]``.
    """

    def __init__(self, options: S3Options, metrics: Metrics | None = None) -> None:
        pool = PoolManager(
            timeout=Timeout(
                connect=min(10.0, options.timeout_seconds), read=options.timeout_seconds
            ),
            maxsize=options.threads,
            retries=False,
        )
        self._client = _client(options, options.endpoint, pool)
        self._signers: dict[Audience, Minio] = {
            "public": _client(options, options.public_endpoint or options.endpoint, pool),
            "worker": _client(options, options.worker_endpoint or options.endpoint, pool),
        }
        self._calls = S3Calls(options.threads, options.retry_seconds)
        self._accounting = Accounting(metrics, "s3")

    async def head(self, uri: str) -> ObjectInfo:
        with self._accounting.operation("head"):
            location = _object(uri)
            try:
                found = await self._run(
                    location, lambda: self._client.stat_object(location.bucket, location.key)
                )
            except NotFound:
                # The answer to HEAD has no body that says what is missing.
                await self._check_bucket(location)
                raise
            return _info(uri, found)

    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with self._accounting.operation("list_objects"):
            async for batch in self._batches(_folder(prefix)):
                for found in batch:
                    if not found.is_dir:
                        yield _info(f"s3://{found.bucket_name}/{found.object_name}", found)

    async def read(
        self, uri: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        if length == 0:
            await self.head(uri)
        with self._accounting.operation("read"):
            location = _object(uri)
            reader = ObjectReader(self._client, location, offset, length)
            try:
                with suppress(OutOfRange):
                    while chunk := await self._run(location, reader.next_chunk):
                        self._accounting.read(len(chunk))
                        yield chunk
            finally:
                reader.close()

    async def write(
        self, uri: str, chunks: AsyncIterator[bytes], *, sha256: str | None = None
    ) -> ObjectInfo:
        with self._accounting.operation("write"):
            writer = ObjectWriter(self._calls, self._client, _object(uri), Digest(sha256))
            etag = await writer.write(chunks)
            self._accounting.wrote(writer.bytes)
            return ObjectInfo(uri, writer.bytes, _plain(etag))

    async def delete(self, uri: str) -> None:
        with self._accounting.operation("delete"):
            location = _object(uri)
            await self._run(
                location, lambda: self._client.remove_object(location.bucket, location.key)
            )

    async def delete_prefix(self, prefix: str) -> int:
        with self._accounting.operation("delete_prefix"):
            location = _folder(prefix)
            removed = 0
            async for batch in self._batches(location):
                await self._run(location, partial(self._remove, location.bucket, batch))
                removed += sum(not found.is_dir for found in batch)
            return removed

    async def sign_get(self, uri: str, *, expires_seconds: int, audience: Audience) -> str:
        return self._sign("GET", _object(uri), expires_seconds, audience)

    async def sign_put(
        self,
        uri: str,
        *,
        max_bytes: int,  # noqa: ARG002 - a signed PUT of S3 cannot carry a limit
        expires_seconds: int,
        audience: Audience,
    ) -> str:
        return self._sign("PUT", _object(uri), expires_seconds, audience)

    async def begin_upload(self, uri: str) -> str:
        with self._accounting.operation("begin_upload"):
            location = _object(uri)
            return await self._run(
                location, lambda: s3_multipart.begin(self._client, location.bucket, location.key)
            )

    async def sign_part(
        self,
        uri: str,
        upload_id: str,
        number: int,
        *,
        max_bytes: int,  # noqa: ARG002 - as in sign_put
        expires_seconds: int,
        audience: Audience,
    ) -> str:
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._sign("PUT", _object(uri), expires_seconds, audience, query)

    async def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        with self._accounting.operation("complete_upload"):
            location = _object(uri)
            await self._run(
                location,
                lambda: s3_multipart.complete(
                    self._client, location.bucket, location.key, upload_id, etags
                ),
            )
            return await self.head(uri)

    async def close(self) -> None:
        self._calls.close()

    async def _run(self, location: uris.Location, call: Callable[[], T]) -> T:
        return await self._calls.run(location.uri, call)

    async def _check_bucket(self, location: uris.Location) -> None:
        """Raise NotFound (BUCKET_NOT_FOUND) where that is known."""
        exists = True
        with suppress(LightenError):
            exists = await self._run(location, lambda: self._client.bucket_exists(location.bucket))
        if not exists:
            raise typed_error_of_code(location.uri, "NoSuchBucket")

    async def _batches(self, location: uris.Location) -> AsyncIterator[list[Object]]:
        after: str | None = None

        def page() -> list[Object]:
            found = self._client.list_objects(
                location.bucket, prefix=location.key, recursive=True, start_after=after
            )
            return list(islice(found, _BATCH))

        while batch := await self._run(location, page):
            yield batch
            if len(batch) < _BATCH:
                return
            after = batch[-1].object_name

    def _remove(self, bucket: str, batch: list[Object]) -> None:
        names = [DeleteObject(found.object_name or "") for found in batch]
        for error in self._client.remove_objects(bucket, names):
            uri = f"s3://{bucket}/{error.name}"
            raise typed_error_of_code(uri, error.code or "", error.message or "")

    def _sign(
        self,
        method: str,
        location: uris.Location,
        expires_seconds: int,
        audience: Audience,
        query: dict[str, str] | None = None,
    ) -> str:
        expires = timedelta(seconds=min(expires_seconds, _LONGEST_EXPIRY_SECONDS))
        return self._signers[audience].get_presigned_url(
            method, location.bucket, location.key, expires, extra_query_params={**(query or {})}
        )


def _client(options: S3Options, endpoint: str, pool: PoolManager) -> Minio:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        raise ValueError(f"the S3 endpoint {endpoint!r} is not http(s)://host[:port]")
    return Minio(
        parts.netloc,
        access_key=options.access_key,
        secret_key=options.secret_key,
        session_token=options.session_token or None,
        secure=parts.scheme == "https",
        # Given, it need not be asked for: signing does no I/O.
        region=options.region,
        http_client=pool,
    )


def _object(uri: str) -> uris.Location:
    return _in_s3(uris.parse_object(uri))


def _folder(uri: str) -> uris.Location:
    return _in_s3(uris.parse_folder(uri))


def _in_s3(location: uris.Location) -> uris.Location:
    if location.scheme != "s3":
        raise uris.invalid_uri(location.uri, "this storage holds s3:// objects")
    return location


def _info(uri: str, found: Object) -> ObjectInfo:
    return ObjectInfo(uri, found.size or 0, _plain(found.etag or ""))


def _plain(etag: str) -> str:
    return etag.strip('"')
