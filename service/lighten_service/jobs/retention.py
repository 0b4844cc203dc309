"""Deletes what is kept for a time only: old progress and logs, and expired uploads."""

import logging

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError
from lighten_service.jobs.ids import time_of
from lighten_service.jobs.ports import Clock, JobStore, ObjectStore

_log = logging.getLogger(__name__)


class Sweeper:
    """One sweep is safe to repeat and to interrupt.

    Args:
        event_seconds: progress and log events are kept for so long after their job's end.
        upload_seconds: uploads live so long, and longer while a live job reads them.
    """

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        *,
        storage_root: str,
        event_seconds: float,
        upload_seconds: float,
        clock: Clock,
    ) -> None:
        self._store = store
        self._objects = objects
        self._projects = f"{storage_root}/projects/"
        self._event_seconds = event_seconds
        self._upload_seconds = upload_seconds
        self._clock = clock

    async def sweep(self) -> None:
        """Delete what is due. What cannot be reached now waits for the next sweep."""
        try:
            events = await self._store.trim(self._clock.now() - self._event_seconds)
            uploads = await self._expired_uploads()
            for folder in uploads:
                await self._objects.delete_prefix(folder)
        except LightenError as error:
            _log.warning("sweep ended early: %s", error.message)
        else:
            _log.info("swept %d events and %d uploads", events, len(uploads))

    async def _expired_uploads(self) -> list[str]:
        due = self._clock.now() - self._upload_seconds
        folders: set[str] = set()
        async for info in self._objects.list_objects(self._projects):
            parts = info.uri.removeprefix(self._projects).split("/")
            if len(parts) < 4 or parts[1] != "uploads":
                continue
            made = time_of(parts[2])
            if made is not None and made < due:
                folders.add(f"{self._projects}{parts[0]}/uploads/{parts[2]}/")
        if not folders:
            return []
        live = [record.job.resolved_spec for record in await self._store.live()]
        in_use = [uri for spec in live for uri in _uris(spec)]
        return sorted(
            folder for folder in folders if not any(uri.startswith(folder) for uri in in_use)
        )


def _uris(spec: pb.JobSpec) -> tuple[str, str, str]:
    """Return the URIs that a job reads, empty where the spec names none."""
    return spec.model.artifact.uri, spec.calibration.data.uri, spec.evaluation.data.uri
