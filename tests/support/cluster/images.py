"""Container images written with the standard library: there is no registry to pull from."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def write_image(path: Path, name: str, files: Mapping[str, Path], entry: str = "") -> None:
    """Write an OCI archive of one layer.

    Args:
        path: the archive.
        name: what ``ctr images import`` will call it.
        files: programs of the image by their path in it; without one the image is empty.
        entry: program that runs by default.
    """
    layer = _tar({target: source.read_bytes() for target, source in files.items()})
    blobs = {}

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    layers = [blob(layer, _LAYER)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [entry]} if entry else {},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(_json(config), _CONFIG),
        "layers": layers,
    }
    annotations = {"io.containerd.image.name": name}
    entries = [{**blob(_json(manifest), _MANIFEST), "annotations": annotations}]
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
    layout = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    path.write_bytes(_tar({**layout, **blobs}))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
