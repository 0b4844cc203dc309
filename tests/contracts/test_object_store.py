"""What every ObjectStore must do. Another adapter is one more entry of ``BACKENDS``."""

import asyncio
import hashlib
import threading
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest

from lighten import transfer
from lighten_service.jobs.errors import (
    InvalidArgument,
    LightenError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from lighten_service.objects.s3 import S3ObjectStore
from tests.support.object_stores import (
    Backend,
    http,
    local_backend,
    make_bucket,
    read_all,
    s3_backend,
    s3_client,
    s3_options,
    stream,
)
from tests.support.seaweedfs import SeaweedFS

BACKENDS = ("s3", "local")
MIB = 1024 * 1024
EXPIRY = {"expires_seconds": 60, "audience": "public"}


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "local":
        async with local_backend(tmp_path) as found:
            yield found
    else:
        server: SeaweedFS = request.getfixturevalue("seaweedfs")
        async with s3_backend(server, uuid.uuid4().hex) as found:
            yield found


async def names(backend: Backend, prefix: str = "") -> list[str]:
    folder = backend.root + prefix
    return [info.uri.removeprefix(folder) async for info in backend.store.list_objects(folder)]


async def refused(kind: type[LightenError], reason: str, *awaitables) -> None:
    for awaitable in awaitables:
        with pytest.raises(kind) as caught:
            await awaitable
        assert caught.value.reason == reason


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 5000])
async def test_what_is_written_is_read_and_described(backend: Backend, content: bytes) -> None:
    uri = backend.root + "folder/object.bin"
    digest = hashlib.sha256(content).hexdigest()
    written = await backend.store.write(uri, stream(content[:7], content[7:]), sha256=digest)
    assert await read_all(backend.store, uri) == content
    assert (written.uri, written.bytes) == (uri, len(content))
    assert written.etag
    assert '"' not in written.etag
    assert await backend.store.head(uri) == written


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (4, None, b"456789"), (3, 4, b"3456"), (8, 99, b"89"), (2, 0, b""),
     (10, None, b""), (50, 5, b"")],
)  # fmt: skip
async def test_reads_ranges(backend: Backend, offset: int, length: int, expected: bytes) -> None:
    uri = backend.root + "digits"
    await backend.store.write(uri, stream(b"0123456789"))
    assert await read_all(backend.store, uri, offset, length) == expected


async def test_a_second_write_replaces_the_object_and_its_etag(backend: Backend) -> None:
    uri = backend.root + "object"
    first = await backend.store.write(uri, stream(b"first"))
    second = await backend.store.write(uri, stream(b"other"))
    assert await read_all(backend.store, uri) == b"other"
    assert first.etag != second.etag


async def test_lists_what_is_below_a_folder_in_order(backend: Backend) -> None:
    for name in ("a/2", "a/10", "a/deep/er", "ab", "b"):
        await backend.store.write(backend.root + name, stream(name.encode()))
    assert await names(backend) == ["a/10", "a/2", "a/deep/er", "ab", "b"]
    assert await names(backend, "a/") == ["10", "2", "deep/er"]
    assert await names(backend, "nothing/") == []
    sizes = [info.bytes async for info in backend.store.list_objects(backend.root)]
    assert sizes == [4, 3, 9, 2, 1]
    await refused(InvalidArgument, "INVALID_URI", names(backend, "a"))


async def test_deletes(backend: Backend) -> None:
    for name in ("a/1", "a/b/2", "ab", "c"):
        await backend.store.write(backend.root + name, stream(b"x"))
    await backend.store.delete(backend.root + "c")
    await backend.store.delete(backend.root + "c")
    await backend.store.delete(backend.root + "never/was")
    assert await backend.store.delete_prefix(backend.root + "a/") == 2
    assert await backend.store.delete_prefix(backend.root + "a/") == 0
    assert await names(backend) == ["ab"]


@pytest.mark.parametrize("size", [5, 17 * MIB], ids=["small", "parts"])
async def test_a_wrong_digest_leaves_nothing(backend: Backend, size: int) -> None:
    uri = backend.root + "new"
    chunks = [b"y" * min(MIB, size)] * max(1, size // MIB)
    await refused(
        InvalidArgument,
        "DIGEST_MISMATCH",
        backend.store.write(uri, stream(*chunks), sha256="0" * 64),
    )
    assert await names(backend) == []
    await backend.store.write(uri, stream(b"good"))
    await refused(
        InvalidArgument,
        "DIGEST_MISMATCH",
        backend.store.write(uri, stream(*chunks), sha256="0" * 64),
    )
    assert await read_all(backend.store, uri) == b"good"


async def test_a_source_that_fails_leaves_nothing(backend: Backend) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(MIB)
        raise ConnectionResetError("the caller went away")

    with pytest.raises(ConnectionResetError):
        await backend.store.write(backend.root + "half", broken())
    assert await names(backend) == []
    assert await backend.store.delete_prefix(backend.root) == 0


async def test_a_big_object_passes_in_bounded_memory(backend: Backend) -> None:
    uri, count = backend.root + "big", 64

    async def source() -> AsyncIterator[bytes]:
        for index in range(count):
            await asyncio.sleep(0.002)  # as a source that waits for its bytes
            yield bytes([index]) * MIB

    expected = hashlib.sha256(b"".join(bytes([i]) * MIB for i in range(count))).hexdigest()
    tracemalloc.start()
    try:
        written = await backend.store.write(uri, source(), sha256=expected)
        digest = hashlib.sha256()
        async for chunk in backend.store.read(uri):
            assert len(chunk) <= MIB
            digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.bytes == count * MIB
    assert digest.hexdigest() == expected
    assert peak < 40 * MIB


async def test_what_is_missing_is_named(backend: Backend) -> None:
    store, missing = backend.store, backend.root + "missing"
    await refused(
        NotFound,
        "OBJECT_NOT_FOUND",
        store.head(missing),
        read_all(store, missing),
        read_all(store, missing, 5, 0),
        store.head(missing + "/below"),
    )
    await refused(
        NotFound,
        "BUCKET_NOT_FOUND",
        store.head(backend.missing_bucket),
        read_all(store, backend.missing_bucket),
    )


@pytest.mark.parametrize(
    "path", ["../up", "a/../b", "./a", "a//b", "a\x00b", "a\nb", "a\\b", ".lighten-new-1", ""]
)
async def test_refuses_paths_that_are_not_plain(backend: Backend, path: str) -> None:
    await refused(
        InvalidArgument,
        "INVALID_URI",
        backend.store.head(backend.root + path),
        backend.store.write(backend.root + path, stream(b"x")),
        backend.store.sign_get(backend.root + path, **EXPIRY),
    )


@pytest.mark.parametrize(
    "name", ["ünï/cödé 模型.onnx", "a b+c", "q?x=1#frag", "&;='\"<>!*()[]{}", "n" * 200, ".hidden"]
)
async def test_takes_odd_names(backend: Backend, name: str) -> None:
    uri = backend.root + name
    await backend.store.write(uri, stream(b"content"))
    assert (await backend.store.head(uri)).bytes == 7
    assert await names(backend) == [name]
    url = await backend.store.sign_get(uri, **EXPIRY)
    assert (await http("GET", url)).data == b"content"
    url = await backend.store.sign_put(uri, max_bytes=10, **EXPIRY)
    assert (await http("PUT", url, b"new")).status == 200
    assert await read_all(backend.store, uri) == b"new"
    assert await backend.store.delete_prefix(backend.root) == 1


async def test_of_concurrent_writes_one_wins_whole(backend: Backend) -> None:
    uri = backend.root + "raced"
    contents = [bytes([index]) * 300_000 for index in range(8)]
    await asyncio.gather(
        *(backend.store.write(uri, stream(c[:100_000], c[100_000:])) for c in contents)
    )
    assert await read_all(backend.store, uri) in contents
    assert await names(backend) == ["raced"]


async def test_a_signed_get_serves_the_object_and_ranges(backend: Backend) -> None:
    uri = backend.root + "object"
    info = await backend.store.write(uri, stream(b"0123456789"))
    for audience in ("public", "worker"):
        url = await backend.store.sign_get(uri, expires_seconds=60, audience=audience)
        answer = await http("GET", url)
        assert (answer.status, answer.data) == (200, b"0123456789")
        assert answer.headers["ETag"] == f'"{info.etag}"'
    for asked, content, served in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ):
        answer = await http("GET", url, Range=asked)
        assert (answer.status, answer.data) == (206, content)
        assert answer.headers["Content-Range"] == served
    answer = await http("GET", url, Range="bytes=10-")
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */10"


async def test_a_signed_put_stores_the_object(backend: Backend) -> None:
    uri = backend.root + "up/loaded"
    url = await backend.store.sign_put(uri, max_bytes=5, **EXPIRY)
    answer = await http("PUT", url, b"hello")
    info = await backend.store.head(uri)
    assert (answer.status, answer.headers["ETag"]) == (200, f'"{info.etag}"')
    assert await read_all(backend.store, uri) == b"hello"


async def test_a_url_is_good_for_its_method_object_and_time_alone(backend: Backend) -> None:
    uri = backend.root + "object"
    await backend.store.write(uri, stream(b"original"))
    get = await backend.store.sign_get(uri, **EXPIRY)
    put = await backend.store.sign_put(uri, max_bytes=100, **EXPIRY)
    tampered = get[:-1] + ("A" if get[-1] != "A" else "B")
    for method, url in (("PUT", get), ("DELETE", get), ("GET", put), ("GET", tampered)):
        body = b"evil" if method == "PUT" else None
        assert (await http(method, url, body)).status in (403, 405)
    short = await backend.store.sign_get(uri, expires_seconds=1, audience="public")
    short_put = await backend.store.sign_put(uri, max_bytes=9, expires_seconds=1, audience="public")
    await asyncio.sleep(2.1)
    assert (await http("GET", short)).status == 403
    assert (await http("PUT", short_put, b"evil")).status == 403
    assert await read_all(backend.store, uri) == b"original"


async def test_a_signed_url_of_a_missing_object_answers_404(backend: Backend) -> None:
    url = await backend.store.sign_get(backend.root + "missing", **EXPIRY)
    assert (await http("GET", url)).status == 404


async def test_parts_become_one_object(backend: Backend, tmp_path: Path) -> None:
    uri, part_bytes = backend.root + "large", 5 * MIB
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"".join(bytes([i]) * part_bytes for i in range(2)) + b"the rest")
    upload_id = await backend.store.begin_upload(uri)
    urls = [
        await backend.store.sign_part(uri, upload_id, n, max_bytes=part_bytes, **EXPIRY)
        for n in (1, 2, 3)
    ]
    etags = await asyncio.to_thread(transfer.upload_parts, urls, part_bytes, source)
    assert await names(backend) == []
    await refused(
        InvalidArgument,
        "INVALID_PART",
        backend.store.complete_upload(uri, upload_id, [*etags[:2], "0" * 32]),
    )
    joined = await backend.store.complete_upload(uri, upload_id, etags)
    assert joined.bytes == source.stat().st_size
    assert await backend.store.complete_upload(uri, upload_id, etags) == joined
    assert await names(backend) == ["large"]
    url = await backend.store.sign_get(uri, **EXPIRY)
    digest = transfer.sha256_file(source)
    await asyncio.to_thread(transfer.download, url, target, sha256=digest, size=joined.bytes)
    await refused(
        NotFound,
        "UPLOAD_NOT_FOUND",
        backend.store.complete_upload(uri, "f" * 32, etags[:1]),
    )


# --- S3 alone -----------------------------------------------------------------------------------


async def test_s3_a_failed_write_leaves_no_parts(seaweedfs: SeaweedFS) -> None:
    async with s3_backend(seaweedfs, uuid.uuid4().hex) as backend:
        await refused(
            InvalidArgument,
            "DIGEST_MISMATCH",
            backend.store.write(backend.root + "x", stream(bytes(17 * MIB)), sha256="0" * 64),
        )
        prefix = backend.root.removeprefix("s3://contract/")
        assert s3_client(seaweedfs)._list_multipart_uploads("contract", prefix=prefix).uploads == []


@pytest.mark.parametrize(
    ("access_key", "secret_key"),
    [("lighten", "wrong"), ("nobody", "wrong"), ("other-bucket-only", "its-secret")],
)
async def test_s3_a_bucket_closed_to_the_credentials(
    seaweedfs: SeaweedFS, access_key: str, secret_key: str
) -> None:
    make_bucket(seaweedfs, "contract")
    make_bucket(seaweedfs, "other")
    seaweedfs.add_identity("other-bucket-only", "its-secret", "other")
    s3_client(seaweedfs).put_object("contract", "closed/object", BytesIO(b"x"), 1)
    store = S3ObjectStore(s3_options(seaweedfs, access_key=access_key, secret_key=secret_key))
    backend = Backend("s3", store, "s3://contract/closed/", "")
    uri = backend.root + "object"
    await refused(
        PermissionDenied,
        "OBJECT_FORBIDDEN",
        store.head(uri),
        read_all(store, uri),
        store.write(uri, stream(b"evil")),
        names(backend),
        store.delete(uri),
        store.begin_upload(uri),
    )
    await store.close()


async def test_s3_urls_are_signed_for_the_host_of_their_audience(seaweedfs: SeaweedFS) -> None:
    alias = seaweedfs.endpoint.replace("127.0.0.1", "localhost")
    store = S3ObjectStore(
        s3_options(seaweedfs, public_endpoint="https://s3.example.org", worker_endpoint=alias)
    )
    make_bucket(seaweedfs, "contract")
    await store.write("s3://contract/audience", stream(b"x"))
    public = await store.sign_get("s3://contract/audience", **EXPIRY)
    worker = await store.sign_get(
        "s3://contract/audience", expires_seconds=10**7, audience="worker"
    )
    assert public.startswith("https://s3.example.org/contract/audience?")
    assert worker.startswith(alias)
    assert (await http("GET", worker)).data == b"x"
    await store.close()


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory):
    """A server that tests may stop."""
    with SeaweedFS(tmp_path_factory.mktemp("frail")) as server:
        yield server


async def test_s3_gone_for_seconds_is_only_slow(frail: SeaweedFS) -> None:
    async with s3_backend(frail, "outage", retry_seconds=20) as backend:
        store, uri = backend.store, backend.root + "object"
        content = bytes(range(256)) * 4 * 8192
        await store.write(uri, stream(content))
        reading = store.read(uri)
        start = await anext(reading)
        frail.stop()
        head = asyncio.create_task(store.head(uri))
        write = asyncio.create_task(store.write(backend.root + "second", stream(b"late")))
        rest = asyncio.create_task(_join(reading))
        await asyncio.sleep(1.5)
        assert not head.done()
        await asyncio.to_thread(frail.start)
        assert (await head).bytes == len(content)
        assert (await write).bytes == 4
        assert start + await rest == content


async def test_s3_gone_for_seconds_breaks_no_transfer(frail: SeaweedFS, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 4 * 8192)
    outages = [threading.Event(), threading.Event()]

    def outage(event: threading.Event) -> None:
        if not event.is_set():
            event.set()
            frail.stop()
            threading.Timer(1.0, frail.start).start()

    async with s3_backend(frail, "transfers", retry_seconds=20) as backend:
        uri = backend.root + "object"
        put = await backend.store.sign_put(uri, max_bytes=2**30, **EXPIRY)
        get = await backend.store.sign_get(uri, **EXPIRY)
        await asyncio.to_thread(
            transfer.upload, put, source, on_progress=lambda done, total: outage(outages[0])
        )
        await asyncio.to_thread(
            transfer.download, get, target, on_progress=lambda done, total: outage(outages[1])
        )
    assert all(event.is_set() for event in outages)
    assert target.read_bytes() == source.read_bytes()


async def test_s3_gone_for_long_is_a_typed_error(frail: SeaweedFS) -> None:
    async with s3_backend(frail, "gone", retry_seconds=1) as backend:
        frail.stop()
        try:
            uri = backend.root + "object"
            async with asyncio.timeout(15):
                await refused(
                    Unavailable,
                    "STORAGE_UNAVAILABLE",
                    backend.store.head(uri),
                    backend.store.write(uri, stream(b"x")),
                    backend.store.write(uri, stream(bytes(17 * MIB))),
                    names(backend),
                    read_all(backend.store, uri),
                    backend.store.delete_prefix(backend.root),
                )
        finally:
            await asyncio.to_thread(frail.start)


async def test_s3_that_never_answers_is_a_typed_error(frail: SeaweedFS) -> None:
    async with s3_backend(frail, "frozen", retry_seconds=1, timeout_seconds=1) as backend:
        frail.pause()
        try:
            async with asyncio.timeout(10):
                await refused(
                    Unavailable, "STORAGE_UNAVAILABLE", backend.store.head(backend.root + "x")
                )
        finally:
            frail.resume()


async def _join(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])
