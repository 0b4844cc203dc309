"""Looks at the objects that a spec names, and pins what is there."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, LightenError, NotFound
from lighten_service.jobs.ports import ObjectInfo, ObjectStore


class Access(Protocol):
    """Which objects a project may name."""

    def check_read(self, project: str, uri: str) -> None:
        """Pass, or raise PermissionDenied (OBJECT_FORBIDDEN) or InvalidArgument (INVALID_URI)."""
        ...


class References:
    """Turns the references of a spec into the files that a worker will read.

    Args:
        max_files: files that one folder may hold.
    """

    def __init__(self, objects: ObjectStore, access: Access, *, max_files: int) -> None:
        self._objects = objects
        self._access = access
        self._max_files = max_files

    async def pin(self, project: str, spec: pb.JobSpec) -> tuple[pb.ResolvedInput, ...]:
        """Return every input of a spec with the size and etag of its files.

        Raises:
            PermissionDenied: the project may not read an object.
            NotFound: an object, a folder or a file named in ``files`` does not exist.
            InvalidArgument: INVALID_URI, EMPTY_OBJECT or TOO_MANY_FILES.
            Unavailable: the storage is out of reach.
        """
        references = list(_references(spec))
        for field, reference in references:
            with _at(field, reference):
                self._access.check_read(project, reference.uri)
        pinned = await asyncio.gather(
            *(self._pin_one(field, reference) for field, reference in references)
        )
        return tuple(pinned)

    async def _pin_one(self, field: str, reference: pb.ObjectRef) -> pb.ResolvedInput:
        is_folder = reference.uri.endswith("/")
        with _at(field, reference):
            files = await (self._folder(reference) if is_folder else self._file(reference))
        return pb.ResolvedInput(field=field, uri=reference.uri, files=files)

    async def _file(self, reference: pb.ObjectRef) -> list[pb.InputFile]:
        info = await self._objects.head(reference.uri)
        if info.bytes == 0:
            raise InvalidArgument("EMPTY_OBJECT", "the object is empty; upload it again")
        path = reference.uri.rpartition("/")[2]
        return [_input_file(info, path, reference.sha256)]

    async def _folder(self, reference: pb.ObjectRef) -> list[pb.InputFile]:
        digests = {item.path: item.sha256 for item in reference.files}
        files: list[pb.InputFile] = []
        async for info in self._objects.list_objects(reference.uri):
            if len(files) == self._max_files:
                raise InvalidArgument(
                    "TOO_MANY_FILES",
                    f"the folder holds more than {self._max_files} files; pack them into a tar",
                )
            path = info.uri.removeprefix(reference.uri)
            files.append(_input_file(info, path, digests.pop(path, "")))
        if not files:
            raise NotFound("OBJECT_NOT_FOUND", "there is nothing below this folder")
        if digests:
            raise NotFound(
                "OBJECT_NOT_FOUND", f"the folder lacks {next(iter(digests))}, which `files` names"
            )
        return files


@contextmanager
def _at(field: str, reference: pb.ObjectRef) -> Iterator[None]:
    """Give an error the field and the URI that it is about."""
    try:
        yield
    except LightenError as error:
        uri = reference.uri
        message = error.message if uri in error.message else f"{uri}: {error.message}"
        raise type(error)(
            error.reason, message, field=f"spec.{field}.uri", metadata=error.metadata
        ) from error


def _references(spec: pb.JobSpec) -> Iterator[tuple[str, pb.ObjectRef]]:
    yield "model.artifact", spec.model.artifact
    if spec.HasField("calibration"):
        yield "calibration.data", spec.calibration.data
    if spec.HasField("evaluation"):
        yield "evaluation.data", spec.evaluation.data


def _input_file(info: ObjectInfo, path: str, sha256: str) -> pb.InputFile:
    return pb.InputFile(path=path, bytes=info.bytes, etag=info.etag, sha256=sha256)
