"""The images of a dataset and their labels, found without decoding any."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lighten_service.worker.datasets.class_index import ClassIndex
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.stored_file import StoredFile

LABELS_FILE = "labels.csv"
SHOWN = 10


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """Images in their order; ``labels``: one a image, or None."""

    images: Sequence[StoredFile]
    labels: Sequence[int] | None


def index_folder_layout(request: Request, files: Iterable[StoredFile]) -> ImageIndex:
    """Label images by ``labels.csv``, else by the folder that holds each.

    Images at the top, without ``labels.csv``, are unlabelled.

    Raises:
        InvalidArgument: DATASET_EMPTY, LABELS_MISSING, UNKNOWN_CLASS, LABEL_OUT_OF_RANGE,
            CORRUPT_DATASET (labels.csv).
    """
    seen = [file for file in files if not file.is_hidden]
    images = [file for file in seen if file.is_image]
    tables = [file for file in seen if file.base == LABELS_FILE]
    check_images(request, images)
    warn_ignored(
        request, [file.name for file in seen if not file.is_image and file.base != LABELS_FILE]
    )
    if not request.wants_labels:
        return ImageIndex(images, None)
    if tables:
        return ImageIndex(images, _labels_from_table(request, tables, images))
    return ImageIndex(images, _labels_from_folders(request, images))


def check_images(request: Request, images: Sequence[StoredFile]) -> None:
    """Refuse a set without images, or with one that is larger than the limit."""
    if not images:
        raise request.refuse("DATASET_EMPTY", "the data hold no image")
    limit = request.limits.image_bytes
    for image in images:
        if image.size > limit:
            raise request.refuse(
                "DECOMPRESSION_BOMB",
                f"'{image.name}' has {image.size} bytes; an image has at most {limit}",
            )


def warn_ignored(request: Request, names: Sequence[str]) -> None:
    """Say in one warning which files are no images."""
    if names:
        request.warn(
            "FILES_IGNORED",
            f"{len(names)} files are no images and were left out: {listed(names)}",
        )


def listed(names: Sequence[str]) -> str:
    """Return the first names for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _labels_from_folders(request: Request, images: Sequence[StoredFile]) -> list[int] | None:
    classes = ClassIndex(request)
    loose = [image.name for image in images if not image.folder]
    if len(loose) == len(images):
        return None
    if loose:
        raise request.refuse(
            "LABELS_MISSING",
            f"{len(loose)} images lie beside the class folders: {listed(loose)}; "
            "move them into one, or add labels.csv",
        )
    numbers: dict[str, int] = {}
    for image in images:
        if image.folder not in numbers:
            name = image.folder.rpartition("/")[2]
            numbers[image.folder] = classes.number(name, f"folder '{image.folder}'")
    return [numbers[image.folder] for image in images]


def _labels_from_table(
    request: Request, tables: Sequence[StoredFile], images: Sequence[StoredFile]
) -> list[int]:
    if len(tables) > 1:
        raise request.refuse(
            "CORRUPT_DATASET",
            f"more than one {LABELS_FILE}: {listed([table.name for table in tables])}",
        )
    numbers = _read_table(request, tables[0])
    names = {image.name for image in images}
    if unknown := [name for name in numbers if name not in names]:
        raise request.refuse(
            "CORRUPT_DATASET",
            f"{tables[0].name} names {len(unknown)} files that are not there: {listed(unknown)}",
        )
    if missing := [image.name for image in images if image.name not in numbers]:
        raise request.refuse(
            "LABELS_MISSING",
            f"{tables[0].name} has no row for {len(missing)} images: {listed(missing)}",
        )
    return [numbers[image.name] for image in images]


def _read_table(request: Request, table: StoredFile) -> dict[str, int]:
    """Return class numbers by image name, as written relative to the table's folder."""
    if table.size > request.limits.label_bytes:
        raise request.refuse(
            "DECOMPRESSION_BOMB",
            f"'{table.name}' has {table.size} bytes; at most {request.limits.label_bytes}",
        )
    prefix = f"{table.folder}/" if table.folder else ""
    classes = ClassIndex(request)
    numbers: dict[str, int] = {}
    for line, row in _rows(request, table):
        if len(row) != 2:
            raise request.refuse(
                "CORRUPT_DATASET", f"{table.name}, line {line}: write 'file,label'"
            )
        name = prefix + row[0].strip().removeprefix("./")
        if name in numbers:
            raise request.refuse(
                "CORRUPT_DATASET", f"{table.name}, line {line}: '{name}' stands twice"
            )
        numbers[name] = classes.number(row[1].strip(), f"{table.name}, line {line}")
    return numbers


def _rows(request: Request, table: StoredFile) -> Iterable[tuple[int, list[str]]]:
    """Yield rows with their line numbers; a heading ``file,label`` and empty lines left out."""
    try:
        reader = csv.reader(io.StringIO(table.read().decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            heading = [cell.strip().lower() for cell in row] == ["file", "label"]
            if row and not (heading and reader.line_num == 1):
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise request.refuse(
            "CORRUPT_DATASET", f"{table.name} is not a CSV file in UTF-8: {error}"
        ) from error
