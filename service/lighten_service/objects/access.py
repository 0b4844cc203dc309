"""Which objects a project may name in a spec."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lighten_service.jobs.errors import PermissionDenied
from lighten_service.objects.uri import Location, of_folder, parse, parse_folder

# In ``s3_allowed``: what every project may read.
EVERY_PROJECT = "*"


class AccessPolicy:
    """Decides by URI alone, before storage is asked.

    A project reads its own ``<storage root>/projects/{project}/``, the S3 prefixes allowed to it
    and everything below the file roots, but nothing else of what Lighten keeps in the storage root
    and the private folders, also where these lie below an allowed prefix or behind a link.

    Args:
        storage_root: URI below which Lighten keeps uploads and results.
        s3_allowed: URIs (``s3://bucket`` or ``s3://bucket/prefix``) by project; the key ``*``
            allows to every project.
        file_roots: absolute folders, with links resolved, whose files every project may read.
        private: folders of the server's own files, which no project may read, save for its part of
            a storage root that lies there.

    Raises:
        InvalidArgument: reason INVALID_URI, in one of the settings.
    """

    def __init__(
        self,
        storage_root: str,
        *,
        s3_allowed: Mapping[str, Sequence[str]] | None = None,
        file_roots: Sequence[Path] = (),
        private: Sequence[Path] = (),
    ) -> None:
        self._storage_root = _as_folder(storage_root)
        self._reserved = (
            *_kept_in(self._storage_root),
            *_kept_in(_resolved(self._storage_root)),
            *(of_folder(folder.resolve()) for folder in private),
        )
        self._s3 = {
            project: tuple(_as_folder(uri) for uri in uris)
            for project, uris in (s3_allowed or {}).items()
        }
        self._files = tuple(of_folder(root) for root in file_roots)

    def check_read(self, project: str, uri: str, *, field: str = "") -> None:
        """Pass when the project may read the object or folder.

        Args:
            field: path of the request's field that holds the URI, for the error.

        Raises:
            InvalidArgument: reason INVALID_URI.
            PermissionDenied: reason OBJECT_FORBIDDEN; the message names what is allowed.
        """
        location = parse(uri)
        own = self._own_location(project)
        if own.contains(location):
            return
        allowed = self._allowed(project)
        if not self._touches_reserved(location) and any(
            place.contains(location) for place in allowed
        ):
            return
        names = ", ".join([own.uri, *(place.uri for place in allowed)])
        raise PermissionDenied(
            "OBJECT_FORBIDDEN",
            f"{uri!r} is not open to project {project!r}, which may read below: {names}; "
            "what Lighten itself keeps there is closed",
            field=field,
        )

    def own_folder(self, project: str) -> str:
        """Return the URI of the project's own part of the storage root, with ``/`` at the end."""
        return self._own_location(project).uri

    def _own_location(self, project: str) -> Location:
        # Of a valid name and so canonical: nothing to parse.
        return replace(self._storage_root, key=f"{self._storage_root.key}projects/{project}/")

    def _touches_reserved(self, location: Location) -> bool:
        return any(
            place.contains(location) or (location.is_folder and location.contains(place))
            for place in self._reserved
        )

    def _allowed(self, project: str) -> tuple[Location, ...]:
        return (*self._s3.get(project, ()), *self._s3.get(EVERY_PROJECT, ()), *self._files)


def _kept_in(root: Location) -> tuple[Location, ...]:
    return tuple(replace(root, key=f"{root.key}{name}/") for name in ("projects", "cache"))


def _resolved(root: Location) -> Location:
    # A file root reaches the storage root by its real path, whatever links the setting names.
    return of_folder(Path("/", root.key).resolve()) if root.scheme == "file" else root


def _as_folder(uri: str) -> Location:
    return parse_folder(uri if uri.endswith("/") else uri + "/")
