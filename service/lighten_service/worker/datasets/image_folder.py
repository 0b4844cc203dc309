"""Images in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from lighten_service.worker.datasets.image_index import ImageIndex, index_folder_layout
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.stored_file import StoredFile


def read_image_folder(request: Request) -> ImageIndex:
    """Index a folder in the order of its paths. Raises as ``index_folder_layout``, and
    UNSAFE_ARCHIVE for links and special files."""
    if not request.path.is_dir():
        raise request.refuse(
            "WRONG_FORMAT",
            "an IMAGE_FOLDER is a folder, but data.uri names a file; end the URI with '/', or "
            "use IMAGE_TAR for an archive",
        )
    files = sorted(_walk(request, request.path), key=lambda file: file.name)
    return index_folder_layout(request, files)


def _walk(request: Request, root: Path) -> Iterator[StoredFile]:
    count = 0
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(root).as_posix()
                count += 1
                if count > request.limits.members:
                    raise request.refuse(
                        "DECOMPRESSION_BOMB",
                        f"the folder holds more than {request.limits.members} files",
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    yield StoredFile(name, Path(entry.path), 0, size)
                else:
                    raise request.refuse(
                        "UNSAFE_ARCHIVE",
                        f"'{name}' is a link or a special file; store a plain file",
                    )
