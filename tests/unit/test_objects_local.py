"""What only the local folder has to get right: links, roots, signed URLs."""

import asyncio
import http.client
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from lighten_service.jobs.errors import InvalidArgument, LightenError, NotFound, PermissionDenied
from lighten_service.objects import folders
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.router import ObjectRouter
from lighten_service.objects.signing import Grant, UrlSigner
from lighten_service.telemetry.metrics import Metrics
from tests.support.object_stores import (
    SECRET,
    Backend,
    Shifting,
    local_backend,
    read_all,
    stream,
)
from tests.support.object_stores import (
    http as request,
)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    async with local_backend(tmp_path) as found:
        yield found


@pytest.fixture
def folder(backend: Backend) -> Path:
    path = Path(backend.root.removeprefix("file://"))
    path.mkdir()
    return path


def signer(clock: Shifting | None = None) -> UrlSigner:
    return UrlSigner(SECRET, "http://public", "http://worker", clock or Shifting())


async def test_links_and_special_files_are_refused(
    backend: Backend, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "file").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    store, root = backend.store, backend.root
    for uri in (root + "file", root + "folder/secret", root + "pipe"):
        with pytest.raises(PermissionDenied) as caught:
            await store.head(uri)
        assert caught.value.reason == "OBJECT_FORBIDDEN"
    with pytest.raises(PermissionDenied, match="link"):
        await store.write(root + "folder/new", stream(b"x"))
    with pytest.raises(PermissionDenied, match="link"):
        [info async for info in store.list_objects(root)]
    assert await store.delete_prefix(root) == 3
    assert (tmp_path / "secret").read_text() == "secret"


def test_folders_that_vanish_while_listed_hide_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with folders.open_folder(tmp_path, ()) as descriptor:
        files = folders.walk(descriptor)
        assert next(files)[0] == "a/x"
        shutil.rmtree(tmp_path / "b")
        shutil.rmtree(tmp_path / "c")
        (tmp_path / "c").touch()
        assert [path for path, _ in files] == ["d/x"]


def test_a_folder_that_vanishes_once_open_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with folders.open_folder(tmp_path, ("a",)) as descriptor:
        (tmp_path / "a").rmdir()
        assert list(folders.walk(descriptor)) == []


async def test_roots_limit_reading_and_writing(tmp_path: Path) -> None:
    inner = tmp_path / "data" / "inner"
    store = LocalObjectStore([(tmp_path / "data", False), (inner, True)], signer())
    (tmp_path / "data" / "given").write_text("given")
    given, inside = f"file://{tmp_path}/data/given", f"file://{inner}/x"
    assert await read_all(store, given) == b"given"
    await store.write(inside, stream(b"x"))
    for uri in (given, f"file://{tmp_path}/data/new", f"file://{tmp_path}/data-2/x"):
        with pytest.raises(PermissionDenied) as caught:
            await store.write(uri, stream(b"x"))
        assert caught.value.reason == "OBJECT_FORBIDDEN"
    with pytest.raises(PermissionDenied, match="data"):
        await store.head("file:///etc/passwd")
    with pytest.raises(PermissionDenied):
        await store.sign_put(given, max_bytes=1, expires_seconds=1, audience="public")


async def test_escaped_uris_name_the_same_object(backend: Backend) -> None:
    await backend.store.write(backend.root + "a b", stream(b"x"))
    assert (await backend.store.head(backend.root + "a%20b")).bytes == 1


async def test_names_that_only_a_file_system_has_are_typed_errors(
    backend: Backend, folder: Path
) -> None:
    (folder / "file").write_text("x")
    cases: list[tuple[str, type[LightenError], str]] = [
        ("n" * 300, InvalidArgument, "INVALID_URI"),
        ("file/below", InvalidArgument, "INVALID_URI"),
    ]
    for name, kind, reason in cases:
        with pytest.raises(kind) as caught:
            await backend.store.write(backend.root + name, stream(b"x"))
        assert caught.value.reason == reason
    with pytest.raises(NotFound):
        await backend.store.head(backend.root + "file/below")
    (folder / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(InvalidArgument, match="UTF-8"):
        [info async for info in backend.store.list_objects(backend.root)]


async def test_head_is_served_on_get_urls(backend: Backend) -> None:
    uri = backend.root + "object"
    info = await backend.store.write(uri, stream(b"0123456789"))
    url = await backend.store.sign_get(uri, expires_seconds=60, audience="public")
    answer = await request("HEAD", url)
    assert (answer.status, answer.headers["Content-Length"]) == (200, "10")
    assert answer.headers["ETag"] == f'"{info.etag}"'
    stale = await request("GET", url, **{"Range": "bytes=2-", "If-Range": '"other"'})
    assert (stale.status, stale.data) == (200, b"0123456789")


async def test_refusals_are_short_json(backend: Backend) -> None:
    uri = backend.root + "object"
    url = await backend.store.sign_get(uri, expires_seconds=60, audience="public")
    missing = await request("GET", url)
    assert (missing.status, missing.json()["reason"]) == (404, "OBJECT_NOT_FOUND")
    backend.clock.offset = 61
    expired = await request("GET", url)
    assert (expired.status, expired.json()["reason"]) == (403, "URL_EXPIRED")
    for token in ("nonsense", "a.b", "a.b.c", "é.ü", url.rpartition("/")[2] + "="):
        answer = await request("GET", url.rpartition("/")[0] + "/" + token)
        assert (answer.status, answer.json()["reason"]) == (403, "OBJECT_FORBIDDEN")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_put_beyond_its_limit_is_refused(
    backend: Backend, folder: Path, chunked: bool
) -> None:
    url = await backend.store.sign_put(
        backend.root + "object", max_bytes=10, expires_seconds=60, audience="public"
    )
    parts = urlsplit(url)

    def put() -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(parts.netloc)
        body = iter([b"x" * 6, b"y" * 6]) if chunked else b"z" * 12
        connection.request("PUT", parts.path, body, encode_chunked=chunked)
        return connection.getresponse()

    answer = await asyncio.to_thread(put)
    assert answer.status == 413
    assert b"OBJECT_TOO_LARGE" in answer.read()
    assert list(folder.iterdir()) == []


async def test_a_put_that_breaks_off_leaves_nothing(backend: Backend, folder: Path) -> None:
    url = await backend.store.sign_put(
        backend.root + "object", max_bytes=100, expires_seconds=60, audience="public"
    )
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"PUT {parts.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhalf".encode())
    await writer.drain()
    async with asyncio.timeout(5):
        while not list(folder.iterdir()):
            await asyncio.sleep(0.01)
        writer.close()
        while list(folder.iterdir()):
            await asyncio.sleep(0.01)


def test_urls_name_the_address_of_their_audience() -> None:
    grant = Grant("GET", "file:///x", expires=10**10)
    assert signer().url(grant, "public").startswith("http://public/objects/")
    assert signer().url(grant, "worker").startswith("http://worker/objects/")
    token = signer().url(grant, "public").rpartition("/")[2]
    assert signer().verify(token, "HEAD") == grant
    other = UrlSigner(SECRET[::-1], "http://public", "http://worker", Shifting())
    with pytest.raises(PermissionDenied):
        other.verify(token, "GET")
    with pytest.raises(ValueError, match="32 bytes"):
        UrlSigner(b"short", "http://public", "http://worker", Shifting())


async def test_bytes_and_errors_are_counted(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    store = LocalObjectStore([(tmp_path, True)], signer(), Metrics(registry))
    await store.write(f"file://{tmp_path}/x", stream(b"12345"))
    await read_all(store, f"file://{tmp_path}/x", 2)
    with pytest.raises(NotFound):
        await store.head(f"file://{tmp_path}/missing")
    labels = {"adapter": "local"}
    assert registry.get_sample_value("lighten_storage_written_bytes_total", labels) == 5
    assert registry.get_sample_value("lighten_storage_read_bytes_total", labels) == 3
    labels |= {"operation": "head"}
    assert registry.get_sample_value("lighten_storage_calls_total", labels) == 1
    labels |= {"reason": "OBJECT_NOT_FOUND"}
    assert registry.get_sample_value("lighten_storage_errors_total", labels) == 1


async def test_the_router_goes_by_scheme(tmp_path: Path) -> None:
    router = ObjectRouter({"file": LocalObjectStore([(tmp_path, True)], signer())})
    uri = f"file://{tmp_path}/x"
    await router.write(uri, stream(b"x"))
    assert await read_all(router, uri) == b"x"
    assert [info.uri async for info in router.list_objects(f"file://{tmp_path}/")] == [uri]
    with pytest.raises(InvalidArgument, match="file:// storage") as caught:
        await router.head("s3://bucket/key")
    assert caught.value.reason == "INVALID_URI"
    await router.close()
