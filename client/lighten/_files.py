"""Uploads and downloads as both clients make them; blocking, so asyncio runs them in a thread."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lighten import errors, transfer
from lighten import v1 as pb

# Name of the file, bytes done, bytes in all.
FileProgress = Callable[[str, int, int], None]
# Called between chunks; what it raises ends the transfer.
Check = Callable[[], None]
MakeDownloadUrl = Callable[[pb.CreateDownloadUrlRequest], pb.CreateDownloadUrlResponse]
MakeUploadUrl = Callable[[pb.CreateUploadUrlRequest], pb.CreateUploadUrlResponse]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What a spec names after an upload.

    Attributes:
        uri: for ``ObjectRef.uri``; a folder ends with ``/``.
        sha256: for ``ObjectRef.sha256``; empty for a folder.
        files: number of files.
        bytes: their size.
    """

    uri: str
    sha256: str
    files: int
    bytes: int


def download_all(
    job: str,
    artifacts: Sequence[pb.Artifact],
    directory: Path,
    make_url: MakeDownloadUrl,
    on_progress: FileProgress | None = None,
    check: Check | None = None,
    *,
    ca: str,
) -> list[Path]:
    """Bring artifacts into a folder, each whole or not at all, and return their paths.

    ``ca``, here and below: certificates (PEM) to trust besides the system's.
    """
    return [
        _download(job, artifact, directory, make_url, on_progress, check, ca)
        for artifact in artifacts
    ]


def read_report(
    job: str,
    artifacts: Sequence[pb.Artifact],
    make_url: MakeDownloadUrl,
    check: Check | None = None,
    *,
    ca: str,
) -> str:
    """Return the HTML report among a job's artifacts.

    Raises:
        NotFound: REPORT_NOT_FOUND.
        TransferError: it cannot be read, or has another digest.
    """
    found = next((item for item in artifacts if item.kind == pb.ARTIFACT_KIND_REPORT), None)
    if found is None:
        raise errors.NotFound(
            f"{job} has no report: it has not succeeded, or its spec says outputs.report: false",
            reason="REPORT_NOT_FOUND",
        )
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        path = _download(job, found, Path(folder), make_url, None, check, ca)
        return path.read_text(encoding="utf-8")


def upload(
    path: Path,
    make_url: MakeUploadUrl,
    on_progress: FileProgress | None = None,
    check: Check | None = None,
    *,
    ca: str,
) -> Uploaded:
    """Send a file or the files below a folder."""
    with _typed_errors(path.name):
        if path.is_dir():
            return _upload_folder(path, make_url, on_progress, check, ca)
        if not path.is_file():
            raise errors.InvalidArgument(f"there is no file {path}", reason="FILE_NOT_FOUND")
        answer = _upload_file(path, path.name, "", make_url, on_progress, check, ca)
        digest = transfer.sha256_file(path)
        return Uploaded(answer.uri, digest, 1, path.stat().st_size)


def _download(
    job: str,
    artifact: pb.Artifact,
    directory: Path,
    make_url: MakeDownloadUrl,
    on_progress: FileProgress | None,
    check: Check | None,
    ca: str,
) -> Path:
    target = directory / _safe(artifact.name)
    with _typed_errors(artifact.name):
        if not _is_there(target, artifact):
            target.parent.mkdir(parents=True, exist_ok=True)
            request = pb.CreateDownloadUrlRequest(job=job, artifact=artifact.name)
            transfer.download(
                lambda: make_url(request).url,
                target,
                sha256=artifact.sha256 or None,
                size=artifact.bytes,
                on_progress=_named(on_progress, artifact.name, artifact.bytes),
                check=check,
                ca=ca,
            )
        elif on_progress is not None:
            on_progress(artifact.name, artifact.bytes, artifact.bytes)
    return target


def _is_there(target: Path, artifact: pb.Artifact) -> bool:
    return (
        target.is_file()
        and target.stat().st_size == artifact.bytes
        and transfer.sha256_file(target) == artifact.sha256
    )


def _safe(name: str) -> PurePosixPath:
    """Return an artifact's name as a path that stays in its folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name:
        message = f"the artifact {name!r} would be written outside of the folder"
        raise errors.TransferError(message, reason="UNSAFE_NAME")
    return path


def _upload_folder(
    folder: Path,
    make_url: MakeUploadUrl,
    on_progress: FileProgress | None,
    check: Check | None,
    ca: str,
) -> Uploaded:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise errors.InvalidArgument(f"the folder {folder} holds no files", reason="EMPTY_FOLDER")
    upload_id, uri = "", ""
    for path in files:
        name = path.relative_to(folder).as_posix()
        answer = _upload_file(path, name, upload_id, make_url, on_progress, check, ca)
        upload_id, uri = answer.upload_id, answer.folder_uri
    return Uploaded(uri, "", len(files), sum(path.stat().st_size for path in files))


def _upload_file(
    path: Path,
    name: str,
    upload_id: str,
    make_url: MakeUploadUrl,
    on_progress: FileProgress | None,
    check: Check | None,
    ca: str,
) -> pb.CreateUploadUrlResponse:
    size = path.stat().st_size
    request = pb.CreateUploadUrlRequest(filename=name, bytes=size, upload_id=upload_id)
    answer = make_url(request)
    # A fresh URL for the same file comes from the same folder.
    request.upload_id = answer.upload_id
    transfer.upload(
        answer.url,
        path,
        refresh=lambda: make_url(request).url,
        on_progress=_named(on_progress, name, size),
        check=check,
        ca=ca,
    )
    return answer


def _named(on_progress: FileProgress | None, name: str, size: int) -> transfer.Progress | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(name, done, size if total is None else total)


@contextmanager
def _typed_errors(name: str) -> Iterator[None]:
    try:
        yield
    except transfer.TransferError as error:
        raise errors.TransferError(f"{name}: {error.message}", reason=error.reason) from error
    except OSError as error:
        message = f"{error.filename or name}: {error.strerror or error}"
        raise errors.TransferError(message, reason="FILE_ERROR") from error
