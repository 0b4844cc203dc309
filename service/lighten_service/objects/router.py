"""One object store over several: the scheme of a URI chooses the adapter."""

from collections.abc import AsyncIterator, Mapping, Sequence

from lighten_service.jobs.ports import Audience, ObjectInfo, ObjectStore
from lighten_service.objects.uri import invalid_uri


class ObjectRouter:
    """An ObjectStore that hands each call to the adapter of the URI's scheme.

    Args:
        stores: adapters by scheme: ``{"s3": ..., "file": ...}``.

    A scheme without an adapter raises InvalidArgument (INVALID_URI).
    """

    def __init__(self, stores: Mapping[str, ObjectStore]) -> None:
        self._stores = dict(stores)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that this server reads and writes."""
        return tuple(sorted(self._stores))

    async def head(self, uri: str) -> ObjectInfo:
        return await self._store(uri).head(uri)

    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._store(prefix).list_objects(prefix)

    def read(self, uri: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        return self._store(uri).read(uri, offset=offset, length=length)

    async def write(
        self, uri: str, chunks: AsyncIterator[bytes], *, sha256: str | None = None
    ) -> ObjectInfo:
        return await self._store(uri).write(uri, chunks, sha256=sha256)

    async def delete(self, uri: str) -> None:
        await self._store(uri).delete(uri)

    async def delete_prefix(self, prefix: str) -> int:
        return await self._store(prefix).delete_prefix(prefix)

    async def sign_get(self, uri: str, *, expires_seconds: int, audience: Audience) -> str:
        return await self._store(uri).sign_get(
            uri, expires_seconds=expires_seconds, audience=audience
        )

    async def sign_put(
        self, uri: str, *, max_bytes: int, expires_seconds: int, audience: Audience
    ) -> str:
        return await self._store(uri).sign_put(
            uri, max_bytes=max_bytes, expires_seconds=expires_seconds, audience=audience
        )

    async def begin_upload(self, uri: str) -> str:
        return await self._store(uri).begin_upload(uri)

    async def sign_part(
        self,
        uri: str,
        upload_id: str,
        number: int,
        *,
        max_bytes: int,
        expires_seconds: int,
        audience: Audience,
    ) -> str:
        return await self._store(uri).sign_part(
            uri,
            upload_id,
            number,
            max_bytes=max_bytes,
            expires_seconds=expires_seconds,
            audience=audience,
        )

    async def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        return await self._store(uri).complete_upload(uri, upload_id, etags)

    async def close(self) -> None:
        for store in self._stores.values():
            await store.close()

    def _store(self, uri: str) -> ObjectStore:
        store = self._stores.get(uri.partition("://")[0])
        if store is None:
            schemes = " and ".join(f"{scheme}://" for scheme in self.schemes) or "no"
            raise invalid_uri(uri, f"this server has {schemes} storage")
        return store
