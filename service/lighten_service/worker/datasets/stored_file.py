"""A stretch of bytes on disk: a file of a folder, or a member of a tar."""

from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pgm"}
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """``name``: path below the dataset, with ``/``."""

    name: str
    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes. Safe from many threads."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    @property
    def folder(self) -> str:
        """Path of the folder below the dataset; empty at the top."""
        return self.name.rpartition("/")[0]

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def is_image(self) -> bool:
        return self.base.rpartition(".")[2].lower() in IMAGE_SUFFIXES

    @property
    def is_hidden(self) -> bool:
        """Whether it is what desktops leave behind, such as ``.DS_Store`` or ``._photo.jpg``."""
        return self.base.startswith(".") or self.base == "Thumbs.db"
