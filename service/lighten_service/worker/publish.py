"""Uploads what an attempt made: bytes first, the manifest last."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from lighten import transfer
from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.session import Session
from lighten_service.worker.transfers import as_lighten_error

MANIFEST = "manifest.json"
MANIFEST_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Product:
    """A file that the job made, to be published as an artifact."""

    path: Path
    kind: pb.ArtifactKind.ValueType
    media_type: str


def publish_artifacts(
    context: StepContext, session: Session, attempt_uri: str, products: Sequence[Product]
) -> list[pb.Artifact]:
    """Upload the files below ``artifacts/`` and return what the result says of them."""
    artifacts = []
    for number, product in enumerate(products):
        context.progress(number, len(products), "files")
        name = product.path.name
        upload(context, session, product.path, f"artifacts/{name}", attempt_uri)
        artifact = pb.Artifact(
            name=name,
            kind=product.kind,
            uri=f"{attempt_uri}artifacts/{name}",
            sha256=transfer.sha256_file(product.path),
            bytes=product.path.stat().st_size,
            media_type=product.media_type,
        )
        context.artifact(artifact)
        artifacts.append(artifact)
    return artifacts


def publish_manifest(
    context: StepContext, session: Session, attempt_uri: str, manifest: pb.Manifest, scratch: Path
) -> str:
    """Upload ``manifest.json`` and return its SHA-256."""
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True, sort_keys=True)
    path = scratch / MANIFEST
    path.write_text(text, encoding="utf-8")
    upload(context, session, path, MANIFEST, attempt_uri)
    return hashlib.sha256(text.encode()).hexdigest()


def upload(
    context: StepContext, session: Session, path: Path, target: str, attempt_uri: str
) -> None:
    """Send a file to ``target`` below the attempt.

    Raises:
        LightenError: what `Session.sign_outputs` raises; Unavailable: STORAGE_UNAVAILABLE for
            longer than the retries last.
    """
    size = path.stat().st_size

    def sign() -> pb.SignedTransfer:
        return session.sign_outputs([(target, size)])[0]

    signed = sign()
    with as_lighten_error("", f"{attempt_uri}{target}"):
        if signed.part_urls:
            _upload_parts(context, session, path, target, signed, sign)
        else:
            transfer.upload(
                signed.url, path, refresh=lambda: sign().url, check=context.check, ca=session.ca
            )


def _upload_parts(
    context: StepContext,
    session: Session,
    path: Path,
    target: str,
    signed: pb.SignedTransfer,
    sign: Callable[[], pb.SignedTransfer],
) -> None:
    """Send a large file in parts; begin anew once when their URLs expire on the way."""
    try:
        etags = transfer.upload_parts(
            signed.part_urls, signed.part_bytes, path, check=context.check, ca=session.ca
        )
    except transfer.TransferError as error:
        if error.reason != "URL_EXPIRED":
            raise
        signed = sign()
        etags = transfer.upload_parts(
            signed.part_urls, signed.part_bytes, path, check=context.check, ca=session.ca
        )
    session.complete_upload(target, signed.upload_id, etags)
