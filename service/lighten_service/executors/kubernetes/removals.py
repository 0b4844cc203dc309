"""Deletes Jobs, again and again until it is done: the API server may be away for minutes."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Literal

from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.executors.kubernetes.availability import Availability, Backoff

_log = logging.getLogger(__name__)

_NOT_FOUND = 404
# Deletions at the same time: thousands of jobs may be cancelled at once.
_PARALLEL = 8

Propagation = Literal["Foreground", "Background"]


class Removals:
    """Deletions that are under way, each of them once."""

    def __init__(self, api: Api, availability: Availability) -> None:
        self._api = api
        self._availability = availability
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, propagation: Propagation) -> None:
        """Delete a Job in the background."""
        self.run(name, lambda: self._ignore(name, propagation))

    def run(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do what ends with the deletion of a Job, unless something is being done for it."""
        if name not in self._tasks:
            task = asyncio.create_task(work(), name=f"remove-{name}")
            self._tasks[name] = task
            task.add_done_callback(lambda done: self._done(name, done))

    async def delete(self, name: str, propagation: Propagation) -> bool:
        """Delete a Job; return once the server has agreed. False: there was none.

        Foreground: it stays until its pods are gone. Background: it goes at once.
        """
        backoff = Backoff()
        while True:
            try:
                async with self._slots:
                    await self._api.delete("jobs", name, propagationPolicy=propagation)
            except ApiUnreachable as error:
                self._availability.failed(error)
            except ApiError as error:
                if error.code == _NOT_FOUND:
                    return False
                if error.passing:
                    self._availability.failed(error)
                else:
                    _log.error("cannot delete the Job %s: %s", name, error)
            else:
                return True
            await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        """Give up: the next server process finds what is left."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ignore(self, name: str, propagation: Propagation) -> None:
        await self.delete(name, propagation)

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("removing the Job %s failed", name, exc_info=error)
