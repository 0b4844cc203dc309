"""Local files that a spec names: found, uploaded, or read in place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lighten import errors
from lighten import v1 as pb
from lighten._files import Uploaded
from lighten.spec import load_spec


@dataclass(frozen=True, slots=True)
class LocalInput:
    """A reference of a spec whose URI is a path on this machine.

    Attributes:
        field: path of the reference in the spec, for example ``model.artifact``.
        reference: the message in the spec, to be changed in place.
        path: the file or folder, absolute.
    """

    field: str
    reference: pb.ObjectRef
    path: Path


def read_spec(path: Path) -> tuple[pb.JobSpec, list[LocalInput]]:
    """Read a spec and find its local files; paths are relative to the spec's folder.

    Raises:
        InvalidSpec: the spec cannot be read, or names a local file that is not there.
    """
    spec = load_spec(path)
    found, missing = [], []
    for field, reference in _references(spec):
        if not reference.uri or "://" in reference.uri:
            continue
        local = (path.resolve().parent / Path(reference.uri).expanduser()).resolve()
        found.append(LocalInput(field, reference, local))
        if not local.exists():
            missing.append(errors.Violation(f"{field}.uri", f"there is no file or folder {local}"))
    if missing:
        message = f"{path} names local files that are not there"
        raise errors.InvalidSpec(message, reason="FILE_NOT_FOUND", violations=missing)
    return spec, found


def upload_inputs(inputs: list[LocalInput], upload: Callable[[LocalInput], Uploaded]) -> None:
    """Upload each path once, and let the spec name what was uploaded.

    Raises:
        InvalidSpec: a file is not what its ``sha256`` in the spec says.
    """
    done: dict[Path, Uploaded] = {}
    for item in inputs:
        if item.path not in done:
            done[item.path] = upload(item)
        uploaded = done[item.path]
        _check_digest(item, uploaded.sha256)
        item.reference.uri = uploaded.uri
        item.reference.sha256 = uploaded.sha256


def read_in_place(inputs: list[LocalInput]) -> None:
    """Let the spec name local paths as ``file://``."""
    for item in inputs:
        item.reference.uri = item.path.as_uri() + ("/" if item.path.is_dir() else "")


def file_roots(spec: pb.JobSpec) -> list[Path]:
    """Return the folders that a server must be allowed to read for the spec's ``file://`` URIs."""
    roots = set()
    for _, reference in _references(spec):
        if reference.uri.startswith("file:///"):
            path = _from_uri(reference.uri)
            roots.add(path if reference.uri.endswith("/") else path.parent)
    return sorted(roots)


def _from_uri(uri: str) -> Path:

    return Path(unquote(urlsplit(uri).path)).resolve()


def _references(spec: pb.JobSpec) -> Iterator[tuple[str, pb.ObjectRef]]:
    yield "model.artifact", spec.model.artifact
    if spec.HasField("calibration"):
        yield "calibration.data", spec.calibration.data
    if spec.HasField("evaluation"):
        yield "evaluation.data", spec.evaluation.data


def _check_digest(item: LocalInput, sha256: str) -> None:
    if item.reference.sha256 and item.reference.sha256 != sha256:
        message = f"{item.path} has the SHA-256 {sha256}, not the one in the spec"
        violation = errors.Violation(f"{item.field}.sha256", message)
        raise errors.InvalidSpec(message, reason="DIGEST_MISMATCH", violations=[violation])
