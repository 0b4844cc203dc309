"""Deletes what is kept for a time only: old progress and logs, expired uploads, step results."""

import logging
from dataclasses import dataclass, field

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError
from lighten_service.jobs.ids import time_of
from lighten_service.jobs.ports import Clock, JobStore, ObjectStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """Folders that may be due, as one listing has them."""

    uploads: set[str] = field(default_factory=set)
    # Of step results, by the id of the job that wrote them.
    steps: dict[str, set[str]] = field(default_factory=dict)


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
            uploads, steps = await self._due_folders()
            for folder in (*uploads, *steps):
                await self._objects.delete_prefix(folder)
        except LightenError as error:
            _log.warning("sweep ended early: %s", error.message)
        else:
            _log.info(
                "swept %d events, %d uploads and the step results of %d attempts",
                events,
                len(uploads),
                len(steps),
            )

    async def _due_folders(self) -> tuple[list[str], list[str]]:
        """Return expired uploads that nobody reads, and the step results of jobs that are over."""
        found = await self._list()
        if not found.uploads and not found.steps:
            return [], []
        # Read after the listing: what is not live now will never be again.
        live = await self._store.live()
        in_use = [uri for record in live for uri in _uris(record.job.resolved_spec)]
        uploads = [
            folder for folder in found.uploads if not any(uri.startswith(folder) for uri in in_use)
        ]
        over = found.steps.keys() - {record.job_id for record in live}
        return sorted(uploads), sorted(folder for job_id in over for folder in found.steps[job_id])

    async def _list(self) -> _Found:
        due = self._clock.now() - self._upload_seconds
        found = _Found()
        async for info in self._objects.list_objects(self._projects):
            match info.uri.removeprefix(self._projects).split("/"):
                case [project, "uploads", upload, _, *_]:
                    made = time_of(upload)
                    if made is not None and made < due:
                        found.uploads.add(f"{self._projects}{project}/uploads/{upload}/")
                case [project, "jobs", job, "attempts", attempt, "steps", _, *_]:
                    folder = f"{self._projects}{project}/jobs/{job}/attempts/{attempt}/steps/"
                    found.steps.setdefault(job, set()).add(folder)
        return found


def _uris(spec: pb.JobSpec) -> tuple[str, str, str]:
    """Return the URIs that a job reads, empty where the spec names none."""
    return spec.model.artifact.uri, spec.calibration.data.uri, spec.evaluation.data.uri
