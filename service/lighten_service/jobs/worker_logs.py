"""Keeps the last lines of workers that are gone, for the operator.

They may hold tracebacks and paths of the installation, so callers get no URL for them: what a
caller shall read of a failure stands in the job's error. They go with the job.
"""

import logging
from collections.abc import AsyncIterator

from lighten_service.jobs.errors import LightenError, NotFound
from lighten_service.jobs.names import JobName, worker_log_uri
from lighten_service.jobs.ports import LaunchStatus, ObjectStore

_log = logging.getLogger(__name__)


class WorkerLogs:
    """Object storage below ``storage_root``."""

    def __init__(self, objects: ObjectStore, storage_root: str) -> None:
        self._objects = objects
        self._root = storage_root

    async def keep(self, job: JobName, launch: int, status: LaunchStatus) -> None:
        """Store the lines of a worker, once, and log where they are.

        Storage that fails costs the lines and no more: the job has to move on.
        """
        if not status.log:
            return
        uri = worker_log_uri(self._root, job, launch, status.instance_id)
        facts = {"job": str(job), "launch": launch, "uri": uri}
        try:
            if await self._is_kept(uri):
                return
            await self._objects.write(uri, _chunks(status.log.encode()))
        except LightenError as error:
            _log.warning("the log of a worker is lost: %s", error.message, extra=facts)
        else:
            _log.info("the log of a worker is kept", extra=facts)

    async def _is_kept(self, uri: str) -> bool:
        try:
            await self._objects.head(uri)
        except NotFound:
            return False
        return True


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content
