"""Transfers against a real HTTP server that misbehaves on request."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lighten import transfer
from lighten.transfer import TransferError

CONTENT = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Storage:
    """What the server has, what it got, and the answers that it gives first."""

    content: bytes = CONTENT
    etag: str = '"one"'
    # Each takes one request off: a status, or a function that answers by itself.
    faults: list[int | Callable[["Handler"], None]] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def log_message(self, format: str, *args: object) -> None:
        """Tests read no log."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.storage.requests.append(("GET", self.path, asked))
        if self.failed():
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.answer(206 if asked else 200, self.storage.content[start:])

    def do_PUT(self) -> None:
        self.storage.requests.append(("PUT", self.path, ""))
        if self.failed():
            return
        self.storage.stored[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b"")

    def failed(self) -> bool:
        if not self.storage.faults:
            return False
        fault = self.storage.faults.pop(0)
        if callable(fault):
            fault(self)
        else:
            self.close_connection = True
            self.answer(fault, b"")
        return True

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", self.storage.etag)
        self.end_headers()
        self.wfile.write(body)


def breaks_after(count: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.answer(200, handler.storage.content[:count], len(handler.storage.content))
        handler.close_connection = True

    return answer


@pytest.fixture
def storage() -> Iterator[Storage]:
    state = Storage()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("BoundHandler", (Handler,), {"storage": state})
    )
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/object"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target.bin"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_and_reports_progress(storage: Storage, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    digest = transfer.download(
        storage.url,
        target,
        sha256=DIGEST,
        size=len(CONTENT),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert digest == DIGEST == transfer.sha256_file(target)
    assert left(target.parent) == ["target.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_empty_object_is_an_empty_file(storage: Storage, target: Path) -> None:
    storage.content = b""
    transfer.download(storage.url, target, size=0)
    assert target.read_bytes() == b""


def test_goes_on_where_the_connection_broke(storage: Storage, target: Path) -> None:
    storage.faults = [breaks_after(1_000_000), 503]
    transfer.download(storage.url, target, sha256=DIGEST)
    assert target.read_bytes() == CONTENT
    first, second, third = (asked for _, _, asked in storage.requests)
    assert first == ""
    assert second == third
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 1_000_000


def test_starts_over_when_the_object_has_changed(storage: Storage, target: Path) -> None:
    def breaks_and_changes(handler: Handler) -> None:
        breaks_after(1_000_000)(handler)
        storage.content, storage.etag = CONTENT[::-1], '"two"'

    storage.faults = [breaks_and_changes]
    transfer.download(storage.url, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_starts_over_where_ranges_are_not_served(storage: Storage, target: Path) -> None:
    storage.faults = [breaks_after(1_000_000), lambda handler: handler.answer(200, CONTENT)]
    transfer.download(storage.url, target, sha256=DIGEST)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("expected", "reason"),
    [({"sha256": "0" * 64}, "DIGEST_MISMATCH"), ({"size": 5}, "SIZE_MISMATCH")],
)
def test_what_is_not_expected_leaves_nothing(
    storage: Storage, target: Path, expected: dict[str, object], reason: str
) -> None:
    target.write_bytes(b"earlier")
    with pytest.raises(TransferError) as caught:
        transfer.download(storage.url, target, **expected)
    assert (caught.value.reason, caught.value.retryable) == (reason, False)
    assert left(target.parent) == ["target.bin"]
    assert target.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (404, "OBJECT_NOT_FOUND", False),
        (403, "URL_EXPIRED", False),
        (400, "STORAGE_UNAVAILABLE", False),
    ],
)
def test_a_refusal_is_final(
    storage: Storage, target: Path, status: int, reason: str, retryable: bool
) -> None:
    storage.faults = [status]
    with pytest.raises(TransferError) as caught:
        transfer.download(storage.url, target)
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)
    assert len(storage.requests) == 1


def test_asks_once_for_a_new_url(storage: Storage, target: Path) -> None:
    storage.faults = [403]
    transfer.download(storage.url, target, refresh=lambda: storage.url + "?fresh")
    assert [path for _, path, _ in storage.requests] == ["/object", "/object?fresh"]
    storage.faults = [403, 403]
    with pytest.raises(TransferError, match="403"):
        transfer.download(lambda: storage.url, target)


def test_waits_for_storage_that_comes_back(storage: Storage, target: Path) -> None:
    storage.faults = [500, 502, 503, 429]
    transfer.download(storage.url, target, sha256=DIGEST, max_seconds=30)
    assert len(storage.requests) == 5


def test_gives_up_in_time(target: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TransferError) as caught:
        transfer.download("http://127.0.0.1:1/object", target, max_seconds=1)
    assert (caught.value.reason, caught.value.retryable) == ("STORAGE_UNAVAILABLE", True)
    assert time.monotonic() - began < 3
    assert left(target.parent) == []


def test_a_url_of_another_scheme_is_refused_at_once(target: Path) -> None:
    with pytest.raises(TransferError) as caught:
        transfer.download("ftp://127.0.0.1/object", target)
    assert not caught.value.retryable


class StopError(Exception):
    pass


@pytest.mark.parametrize("faults", [[], [503] * 50], ids=["between chunks", "in a pause"])
def test_check_stops_the_transfer(storage: Storage, target: Path, faults: list[int]) -> None:
    storage.faults = list(faults)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StopError

    with pytest.raises(StopError):
        transfer.download(storage.url, target, check=check)
    assert left(target.parent) == []


def test_uploads_again_after_a_failure(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    storage.faults = [503]
    seen: list[int] = []
    etag = transfer.upload(storage.url, source, on_progress=lambda done, _: seen.append(done))
    assert etag == "one"
    assert storage.stored == {"/object": CONTENT}
    assert seen[-1] == len(CONTENT)


def test_uploads_an_empty_file(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    transfer.upload(storage.url, source)
    assert storage.stored == {"/object": b""}


def test_uploads_parts_with_fresh_urls(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    part_bytes = len(CONTENT) // 2 - 1
    urls = [f"{storage.url}/{number}" for number in (1, 2, 3)]
    storage.faults = [403]
    asked: list[int] = []

    def refresh(number: int) -> str:
        asked.append(number)
        return urls[number - 1] + "?fresh"

    etags = transfer.upload_parts(urls, part_bytes, source, refresh=refresh)
    assert etags == ["one"] * 3
    assert asked == [1]
    assert b"".join(storage.stored.values()) == CONTENT
    assert list(storage.stored) == ["/object/1?fresh", "/object/2", "/object/3"]
    with pytest.raises(TransferError) as caught:
        transfer.upload_parts(urls[:2], part_bytes, source)
    assert caught.value.reason == "SIZE_MISMATCH"
