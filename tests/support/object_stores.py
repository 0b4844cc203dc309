"""Object stores as the contract suite runs over them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from aiohttp import web
from minio import Minio

from lighten_service.jobs.ports import ObjectStore
from lighten_service.objects.http import object_routes
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.s3 import S3ObjectStore, S3Options
from lighten_service.objects.signing import UrlSigner
from tests.support.seaweedfs import SeaweedFS

SECRET = b"a secret of thirty-two bytes or so"


@dataclass
class Shifting:
    """The clock of this machine, and what the test adds to it."""

    offset: float = 0.0

    def now(self) -> float:
        return time.time() + self.offset


@dataclass
class Backend:
    """A store and a folder in it that is the test's own (with ``/`` at the end)."""

    kind: str
    store: ObjectStore
    root: str
    # A URI in a bucket or root that does not exist.
    missing_bucket: str
    clock: Shifting = field(default_factory=Shifting)


@asynccontextmanager
async def local_backend(folder: Path) -> AsyncIterator[Backend]:
    """A local folder whose URLs are served."""
    listener = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    clock = Shifting()
    gone = folder / "gone"
    store = LocalObjectStore(
        [(folder / "objects", True), (gone, False)], UrlSigner(SECRET, base, base, clock)
    )
    app = web.Application()
    app.add_routes(object_routes(store))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield Backend(
            "local", store, f"file://{folder}/objects/test/", f"file://{gone}/object", clock
        )
    finally:
        await runner.cleanup()
        await store.close()


@asynccontextmanager
async def s3_backend(server: SeaweedFS, prefix: str, **options: float) -> AsyncIterator[Backend]:
    """A prefix in the bucket ``contract`` of a running server."""
    make_bucket(server, "contract")
    store = S3ObjectStore(s3_options(server, **options))
    try:
        yield Backend("s3", store, f"s3://contract/{prefix}/", "s3://no-such-bucket/object")
    finally:
        await store.close()


def s3_options(server: SeaweedFS, **options: Any) -> S3Options:
    """How to reach the server with its own identity and short patience."""
    given = {
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "retry_seconds": 5.0,
        "timeout_seconds": 10.0,
    }
    return S3Options(server.endpoint, **(given | options))


def s3_client(server: SeaweedFS) -> Minio:
    return Minio(
        server.endpoint.removeprefix("http://"),
        server.access_key,
        server.secret_key,
        secure=False,
        region="us-east-1",
    )


def make_bucket(server: SeaweedFS, name: str) -> None:
    """Make a bucket that may be there."""
    client = s3_client(server)
    if not client.bucket_exists(name):
        client.make_bucket(name)


async def http(
    method: str, url: str, body: bytes | None = None, **headers: str
) -> urllib3.BaseHTTPResponse:
    """One request without retries, as curl makes it."""
    return await asyncio.to_thread(
        urllib3.request, method, url, body=body, headers=headers, retries=False
    )


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read_all(store: ObjectStore, uri: str, offset: int = 0, length: int | None = None):
    return b"".join([chunk async for chunk in store.read(uri, offset=offset, length=length)])
