"""The proof that an attempt is complete: its ``manifest.json``, the last object that it wrote."""

import hashlib
import json

from google.protobuf import json_format

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, LightenError, NotFound
from lighten_service.jobs.names import JobName, attempt_uri, safe_path
from lighten_service.jobs.ports import ObjectStore

FORMAT_VERSION = 1
FILENAME = "manifest.json"
ARTIFACTS = "artifacts/"

_MAX_BYTES = 16 << 20


class InvalidManifest(LightenError):
    """What an attempt left is not what a manifest promises.

    Reasons: MANIFEST_MISSING, MANIFEST_INVALID (another attempt may do better) and
    MANIFEST_TOO_NEW (this server is older than the worker).
    """

    kind = pb.ERROR_KIND_SYSTEM


async def read_result(
    objects: ObjectStore, root: str, name: JobName, attempt: int, sha256: str | None
) -> pb.JobResult:
    """Return the result of an attempt, its artifacts with their URIs, once all is verified.

    Args:
        root: URI of the storage root.
        sha256: digest that the manifest must have; None: any.

    Raises:
        InvalidManifest: it is absent, damaged, of another attempt, or names what is not there.
        Unavailable: object storage is out of reach.
    """
    folder = attempt_uri(root, name, attempt)
    content = await _read(objects, folder + FILENAME)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise _invalid("its digest is not the one that the worker gave")
    manifest = _parse(content)
    if (manifest.job, manifest.attempt) != (str(name), attempt):
        raise _invalid(f"it is of attempt {manifest.attempt} of {manifest.job}")
    for artifact in manifest.result.artifacts:
        await _check(objects, folder, artifact)
    manifest.result.attempt = attempt
    return manifest.result


async def _read(objects: ObjectStore, uri: str) -> bytes:
    content = bytearray()
    try:
        async for chunk in objects.read(uri, length=_MAX_BYTES + 1):
            content += chunk
    except NotFound:
        raise InvalidManifest(
            "MANIFEST_MISSING", "the worker wrote no manifest", retryable=True
        ) from None
    if len(content) > _MAX_BYTES:
        raise _invalid(f"it is larger than {_MAX_BYTES} bytes")
    return bytes(content)


def _parse(content: bytes) -> pb.Manifest:
    try:
        fields = json.loads(content)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InvalidManifest(
                "MANIFEST_TOO_NEW",
                f"the manifest has format {version} and this server reads up to {FORMAT_VERSION}; "
                "upgrade the server",
            )
        manifest = json_format.ParseDict(fields, pb.Manifest())
    except (ValueError, json_format.ParseError) as error:
        raise _invalid(str(error)) from error
    if manifest.format_version != FORMAT_VERSION:
        raise _invalid("it has no format_version")
    return manifest


async def _check(objects: ObjectStore, folder: str, artifact: pb.Artifact) -> None:
    try:
        artifact.uri = folder + ARTIFACTS + safe_path(artifact.name, "artifacts.name")
        found = await objects.head(artifact.uri)
    except (NotFound, InvalidArgument) as error:
        raise _invalid(f'artifact "{artifact.name}": {error.message}') from error
    if found.bytes != artifact.bytes:
        raise _invalid(
            f'artifact "{artifact.name}" has {found.bytes} bytes instead of {artifact.bytes}'
        )


def _invalid(why: str) -> InvalidManifest:
    return InvalidManifest("MANIFEST_INVALID", f"the attempt's manifest: {why}", retryable=True)
