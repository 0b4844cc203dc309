"""What the contract suite of executors needs of each: a way to make it, and to see its workers."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from lighten import v1 as pb
from lighten_service.jobs.ports import (
    Executor,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)

T = TypeVar("T")
MIB = 1 << 20
SECONDS = 60.0


class Harness(ABC):
    """One executor with the ways to look at its workers. Workers obey their token: see
    ``tests/support/plain_worker.py``.
    """

    def __init__(self) -> None:
        self.executor = self.make()
        self.heard: list[tuple[LaunchRef, LaunchStatus]] = []
        self._jobs = count(1)

    @abstractmethod
    def make(self) -> Executor:
        """Return an executor with one GPU at most, on the same ground as the one before."""

    @abstractmethod
    async def instance(self, ref: LaunchRef) -> str:
        """Return the instance id of a launch's worker once it runs."""

    @abstractmethod
    def pid(self, instance: str) -> int:
        """Return the process of a worker that runs, as this machine numbers it."""

    @abstractmethod
    async def crash_server(self) -> None:
        """Lose the executor as a kill -9 of the server does."""

    async def listen(self, ref: LaunchRef, status: LaunchStatus) -> None:
        self.heard.append((ref, status))

    def request(self, token: str, **resources: int) -> LaunchRequest:
        job_id = f"{next(self._jobs):026d}"
        return LaunchRequest(
            project="default",
            job_id=job_id,
            name=f"projects/default/jobs/{job_id}",
            launch=1,
            token=token,
            resources=pb.Resources(**resources),
        )

    async def start(self, token: str, **resources: int) -> LaunchRef:
        request = self.request(token, **resources)
        handle = await self.executor.launch(request)
        return LaunchRef(request.job_id, request.launch, handle)

    async def end(self, ref: LaunchRef) -> LaunchStatus:
        """Return the end of a launch as the listener was told, and see that status agrees."""
        status = await until(lambda: self._end(ref))
        assert await self.executor.status(ref) == status
        return status

    async def restart(self) -> None:
        self.executor = self.make()
        self.heard.clear()
        await self.executor.open(self.listen)

    def _end(self, ref: LaunchRef) -> LaunchStatus | None:
        key = (ref.job_id, ref.launch)
        for heard, status in self.heard:
            if (heard.job_id, heard.launch) == key and status.state is LaunchState.ENDED:
                return status
        return None


async def until(look: Callable[[], T | None]) -> T:
    async with asyncio.timeout(SECONDS):
        while (seen := look()) is None or seen is False:
            await asyncio.sleep(0.02)
        return seen
