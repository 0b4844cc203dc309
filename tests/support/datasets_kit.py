"""What the tests of datasets share: small files, and one call that opens them."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lighten import v1 as pb
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.datasets import Limits, open_dataset

IMAGE_INPUT = pb.InputSpec(name="x", shape=[3, 8, 8], dtype=pb.ELEMENT_TYPE_FLOAT32)
VECTOR_INPUT = pb.InputSpec(name="x", shape=[3], dtype=pb.ELEMENT_TYPE_FLOAT32)


@dataclass
class Opener:
    """Opens datasets with the defaults that the control plane fills in."""

    scratch: Path
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def __call__(
        self,
        format: pb.DatasetFormat.ValueType,
        path: Path,
        *,
        inputs: Sequence[pb.InputSpec] = (IMAGE_INPUT,),
        classes: Sequence[str] = (),
        field: str = "evaluation",
        limits: Limits | None = None,
        **dataset: Any,
    ) -> Samples:
        self.scratch.mkdir(exist_ok=True)
        spec = pb.Dataset(
            format=format, **({"batch_size": 4, "seed": 0, "label_key": "label"} | dataset)
        )
        return open_dataset(
            spec,
            path,
            inputs=inputs,
            class_names=classes,
            scratch=self.scratch,
            field=field,
            on_warning=lambda reason, message: self.warnings.append((reason, message)),
            limits=limits,
        )


def read(samples: Samples, batch_size: int | None = None) -> list[LabelledBatch]:
    return list(samples.batches(batch_size))


def rows(samples: Samples, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.inputs[name] for batch in samples.batches()])


def labels(samples: Samples) -> list[int]:
    return [
        int(label)
        for batch in samples.batches()
        if batch.labels is not None
        for label in batch.labels
    ]


def picture(value: int = 0, size: tuple[int, int] = (8, 8), format: str = "PNG") -> bytes:
    """One image of one gray value; ``size`` is (width, height)."""
    return encode(Image.new("RGB", size, (value, value, value)), format)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
