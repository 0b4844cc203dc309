"""Reads the inputs of an attempt into its scratch folder."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event

from lighten import transfer
from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, ResourceExhausted
from lighten_service.worker.context import Cancelled, StepContext
from lighten_service.worker.session import Session
from lighten_service.worker.transfers import as_lighten_error

# Small files are bound by round trips, not by bandwidth.
_PARALLEL = 8
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Fetched:
    """Inputs on disk, and the digest of every file by its URI."""

    # File or folder by ResolvedInput.field.
    paths: dict[str, Path] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Download:
    field: str
    file: pb.InputFile
    uri: str
    path: Path
    received: int = 0


def fetch_inputs(
    context: StepContext,
    inputs: Sequence[pb.ResolvedInput],
    session: Session,
    folder: Path,
    *,
    scratch_bytes: int,
) -> Fetched:
    """Download every input, digests checked while they stream.

    Raises:
        InvalidArgument: DIGEST_MISMATCH, or a file name that leaves its folder (INVALID_PATH).
        FailedPrecondition: INPUT_CHANGED since the job was created.
        NotFound: OBJECT_NOT_FOUND.
        ResourceExhausted: SCRATCH_TOO_SMALL.
        Unavailable: STORAGE_UNAVAILABLE for longer than the retries last.
    """
    downloads = list(_downloads(inputs, folder))
    total = sum(download.file.bytes for download in downloads)
    if total > scratch_bytes:
        raise ResourceExhausted(
            "SCRATCH_TOO_SMALL",
            f"the inputs are {total} bytes, the scratch space of the job {scratch_bytes}: "
            "raise resources.scratch_bytes",
            field="resources.scratch_bytes",
            metadata={"input_bytes": str(total), "scratch_bytes": str(scratch_bytes)},
        )
    fetched = Fetched(paths={one.field: _root(one, folder) for one in inputs})
    failed = Event()

    def check() -> None:
        context.check()
        if failed.is_set():
            raise Cancelled("another input failed")  # ends its own download alone

    signed = session.sign_inputs([(one.field, one.file.path) for one in downloads])
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch") as pool:
        results = [
            pool.submit(_fetch, download, ready.url, session, check)
            for download, ready in zip(downloads, signed, strict=True)
        ]
        pending = set(results)
        try:
            while pending:
                done, pending = wait(pending, _PROGRESS_SECONDS, FIRST_COMPLETED)
                for result in done:
                    result.result()
                context.progress(sum(one.received for one in downloads), total, "bytes")
        except BaseException:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for download, result in zip(downloads, results, strict=True):
        fetched.sha256[download.uri] = result.result()
    return fetched


def _downloads(inputs: Sequence[pb.ResolvedInput], folder: Path) -> Iterator[_Download]:
    for one in inputs:
        root = folder / one.field
        for file in one.files:
            parts = PurePosixPath(file.path).parts
            if not parts or file.path.startswith("/") or ".." in parts or "\\" in file.path:
                raise InvalidArgument(
                    "INVALID_PATH", f"{file.path!r} leaves the folder {one.uri}", field=one.field
                )
            uri = one.uri + file.path if one.uri.endswith("/") else one.uri
            yield _Download(one.field, file, uri, root.joinpath(*parts))


def _root(one: pb.ResolvedInput, folder: Path) -> Path:
    root = folder / one.field
    return root if one.uri.endswith("/") else root / one.files[0].path


def _fetch(download: _Download, url: str, session: Session, check: Callable[[], None]) -> str:
    def sign() -> str:
        return session.sign_inputs([(download.field, download.file.path)])[0].url

    def on_progress(received: int, total: int | None) -> None:  # noqa: ARG001
        download.received = received

    download.path.parent.mkdir(parents=True, exist_ok=True)
    with as_lighten_error(download.field, download.uri):
        return transfer.download(
            url,
            download.path,
            sha256=download.file.sha256 or None,
            size=download.file.bytes,
            refresh=sign,
            on_progress=on_progress,
            check=check,
            ca=session.ca,
        )
