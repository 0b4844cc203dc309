"""Objects as files below configured folders (``file://``)."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lighten_service.jobs.errors import PermissionDenied
from lighten_service.jobs.ports import Audience, ObjectInfo
from lighten_service.objects import folders, local_files, local_uploads
from lighten_service.objects import uri as uris
from lighten_service.objects.accounting import Accounting
from lighten_service.objects.digests import Digest
from lighten_service.objects.local_files import OpenObject
from lighten_service.objects.shared_thread import SharedThread
from lighten_service.objects.signing import Grant, UrlSigner
from lighten_service.telemetry.metrics import Metrics

_LIST_BATCH = 256


class LocalRoot(NamedTuple):
    """A folder whose files are objects. Writable roots are made when they are missing."""

    path: Path
    writable: bool = False


class _Place(NamedTuple):
    root: Path
    # Below the root.
    names: tuple[str, ...]


class LocalObjectStore:
    """The ObjectStore over folders of this machine.

    An object is replaced by rename and never seen half-written; links are refused. The URLs are
    served by ``http.object_routes`` on the server's HTTP port.

    Args:
        roots: (path, writable) each; of roots in one another the inner one counts.
        signer: makes and checks the URLs.
        metrics: where bytes and errors are counted.
    """

    def __init__(
        self,
        roots: Sequence[tuple[Path, bool]],
        signer: UrlSigner,
        metrics: Metrics | None = None,
    ) -> None:
        found = [(uris.of_folder(path), LocalRoot(path, writable)) for path, writable in roots]
        self._roots = sorted(found, key=lambda root: len(root[0].names), reverse=True)
        for _, root in self._roots:
            if root.writable:
                root.path.mkdir(parents=True, exist_ok=True)
        # One for each root: a disk that hangs holds up its own calls alone.
        self._looks = {root.path: SharedThread[os.stat_result]() for _, root in self._roots}
        self._accounting = Accounting(metrics, "local")
        self.signer = signer

    async def head(self, uri: str) -> ObjectInfo:
        def look() -> os.stat_result:
            with folders.errors_of(uri), folders.file_as_folder_is_missing():
                return folders.status_of(*place)

        with self._accounting.operation("head"):
            place = self._place(uris.parse_object(uri))
            return local_files.info(uri, await self._looks[place.root].run(look))

    async def open(self, uri: str) -> OpenObject:
        """Open an object; raises what ``read`` does."""
        with self._accounting.operation("read"):
            return await self._open(uri)

    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with self._accounting.operation("list_objects"):
            place = self._place(uris.parse_folder(prefix))
            files = _walk(prefix, place)
            while batch := await asyncio.to_thread(lambda: list(islice(files, _LIST_BATCH))):
                for path, status in batch:
                    yield local_files.info(uris.join(prefix, path), status)

    async def read(
        self, uri: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        with self._accounting.operation("read"):
            async with await self._open(uri) as file:
                async for chunk in file.chunks(offset, length):
                    yield chunk

    async def write(
        self, uri: str, chunks: AsyncIterator[bytes], *, sha256: str | None = None
    ) -> ObjectInfo:
        with self._accounting.operation("write"):
            place = self._writable(uris.parse_object(uri))
            return await local_files.store(
                uri,
                lambda: folders.NewFile(place.root, place.names),
                chunks,
                Digest(sha256),
                self._accounting,
            )

    async def write_part(
        self, uri: str, upload_id: str, number: int, chunks: AsyncIterator[bytes]
    ) -> ObjectInfo:
        """Store one part of an upload, and return its length and etag.

        Raises:
            NotFound: reason UPLOAD_NOT_FOUND.
            InvalidArgument: reason INVALID_PART; the number is not in 1..10000.
        """
        with self._accounting.operation("write_part"):
            place = self._writable(uris.parse_object(uri))
            return await local_files.store(
                uri,
                lambda: local_uploads.new_part(place.root, place.names, upload_id, number),
                chunks,
                Digest(None),
                self._accounting,
            )

    async def delete(self, uri: str) -> None:
        def unlink() -> None:
            with (
                folders.errors_of(uri),
                suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
                folders.open_folder(place.root, place.names[:-1]) as folder,
            ):
                os.unlink(place.names[-1], dir_fd=folder)

        with self._accounting.operation("delete"):
            place = self._writable(uris.parse_object(uri))
            await asyncio.to_thread(unlink)

    async def delete_prefix(self, prefix: str) -> int:
        with self._accounting.operation("delete_prefix"):
            place = self._writable(uris.parse_folder(prefix))
            return await asyncio.to_thread(_remove_folder, prefix, place)

    async def sign_get(self, uri: str, *, expires_seconds: int, audience: Audience) -> str:
        location = uris.parse_object(uri)
        self._place(location)
        grant = Grant("GET", location.uri, self.signer.expiry(expires_seconds))
        return self.signer.url(grant, audience)

    async def sign_put(
        self, uri: str, *, max_bytes: int, expires_seconds: int, audience: Audience
    ) -> str:
        location = uris.parse_object(uri)
        self._writable(location)
        grant = Grant("PUT", location.uri, self.signer.expiry(expires_seconds), max_bytes)
        return self.signer.url(grant, audience)

    async def begin_upload(self, uri: str) -> str:
        def begin() -> str:
            with folders.errors_of(uri):
                return local_uploads.begin(*place)

        with self._accounting.operation("begin_upload"):
            place = self._writable(uris.parse_object(uri))
            return await asyncio.to_thread(begin)

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
        location = uris.parse_object(uri)
        self._writable(location)
        expires = self.signer.expiry(expires_seconds)
        grant = Grant("PUT", location.uri, expires, max_bytes, upload_id, number)
        return self.signer.url(grant, audience)

    async def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        def complete() -> None:
            with folders.errors_of(uri):
                local_uploads.complete(place.root, place.names, upload_id, etags)

        with self._accounting.operation("complete_upload"):
            place = self._writable(uris.parse_object(uri))
            await asyncio.to_thread(complete)
            return await self.head(uri)

    async def close(self) -> None:
        """Nothing is held open between calls."""

    async def _open(self, uri: str) -> OpenObject:
        def open_file() -> BinaryIO:
            with folders.errors_of(uri), folders.file_as_folder_is_missing():
                return folders.open_file(*place)

        place = self._place(uris.parse_object(uri))
        return OpenObject(uri, await asyncio.to_thread(open_file), self._accounting)

    def _place(self, location: uris.Location, *, writable: bool = False) -> _Place:
        if location.scheme != "file":
            raise uris.invalid_uri(location.uri, "this storage holds file:// objects")
        for outer, root in self._roots:
            if not outer.contains(location):
                continue
            if writable and not root.writable:
                raise PermissionDenied(
                    "OBJECT_FORBIDDEN", f"{location.uri!r} lies in a folder that is read-only"
                )
            return _Place(root.path, location.names[len(outer.names) :])
        allowed = ", ".join(str(root.path) for _, root in self._roots) or "none is configured"
        raise PermissionDenied(
            "OBJECT_FORBIDDEN",
            f"{location.uri!r} is outside of the folders that this server uses: {allowed}",
        )

    def _writable(self, location: uris.Location) -> _Place:
        return self._place(location, writable=True)


def _walk(prefix: str, place: _Place) -> Iterator[tuple[str, os.stat_result]]:
    # As in S3, an empty folder and one that is not there are the same.
    with (
        folders.errors_of(prefix),
        suppress(FileNotFoundError, NotADirectoryError),
        folders.open_folder(*place) as folder,
    ):
        yield from folders.walk(folder)


def _remove_folder(prefix: str, place: _Place) -> int:
    with folders.errors_of(prefix):
        try:
            with folders.open_folder(*place) as folder:
                removed = folders.empty(folder)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        if place.names:
            # Not empty when somebody writes meanwhile.
            with suppress(OSError), folders.open_folder(place.root, place.names[:-1]) as parent:
                os.rmdir(place.names[-1], dir_fd=parent)
        return removed
