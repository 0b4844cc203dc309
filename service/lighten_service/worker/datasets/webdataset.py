"""The WebDataset layout: files that share a key belong to one sample."""

from collections.abc import Sequence

from lighten_service.worker.datasets.class_index import ClassIndex
from lighten_service.worker.datasets.image_index import (
    ImageIndex,
    check_images,
    listed,
    warn_ignored,
)
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.stored_file import StoredFile

_LABEL = "cls"
_MAX_LABEL_BYTES = 1024


def split_key(file: StoredFile) -> tuple[str, str]:
    """Return key and extension: the base name is cut at its first dot, as WebDataset does."""
    stem, _, extension = file.base.partition(".")
    return (f"{file.folder}/{stem}" if file.folder else stem), extension.lower()


def is_webdataset(files: Sequence[StoredFile]) -> bool:
    """Whether labels stand in ``.cls`` members."""
    return any(split_key(file)[1] == _LABEL for file in files if not file.is_hidden)


def index_webdataset(request: Request, files: Sequence[StoredFile]) -> ImageIndex:
    """Pair images with the ``.cls`` member of the same key.

    Raises:
        InvalidArgument: as ``index_folder_layout``, and UNSAFE_ARCHIVE for two images of one key.
    """
    images: dict[str, StoredFile] = {}
    labels: dict[str, StoredFile] = {}
    ignored: list[str] = []
    for file in files:
        key, extension = split_key(file)
        if file.is_hidden:
            continue
        if extension == _LABEL:
            labels[key] = file
        elif not file.is_image:
            ignored.append(file.name)
        elif key in images:
            raise request.refuse(
                "CORRUPT_DATASET", f"two images with the key '{key}'; a sample has one"
            )
        else:
            images[key] = file
    check_images(request, list(images.values()))
    warn_ignored(request, ignored)
    if not request.wants_labels:
        return ImageIndex(list(images.values()), None)
    if missing := [key for key in images if key not in labels]:
        raise request.refuse(
            "LABELS_MISSING",
            f"{len(missing)} images have no .cls member: {listed(missing)}",
        )
    classes = ClassIndex(request)
    numbers = [_number(request, classes, labels[key]) for key in images]
    return ImageIndex(list(images.values()), numbers)


def _number(request: Request, classes: ClassIndex, file: StoredFile) -> int:
    if file.size > _MAX_LABEL_BYTES:
        raise request.refuse(
            "CORRUPT_DATASET", f"'{file.name}' has {file.size} bytes; it holds one class"
        )
    return classes.number(file.read().decode("utf-8", "replace").strip(), f"'{file.name}'")
