"""What makes a result reproducible."""

from collections.abc import Mapping, Sequence
from importlib import metadata

from lighten import v1 as pb
from lighten_service.worker.runtime import thread_count

_PACKAGES = (
    "aimet-onnx",
    "aimet-torch",
    "lighten",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "timm",
    "torch",
    "torchvision",
)


def versions() -> dict[str, str]:
    """Return the version of every installed package that can change a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(
    spec: pb.JobSpec,
    device: str,
    input_sha256: Mapping[str, str],
    cpus: Sequence[pb.AttemptCpu],
) -> pb.Provenance:
    """Return what a result comes from. ``cpus``: of its attempts, the first one first."""
    return pb.Provenance(
        versions=versions(),
        device=device,
        seed=spec.seed,
        input_sha256=input_sha256,
        threads=thread_count(),
        cpus=cpus,
    )
