"""Ends of launches and of their workers, from the executor's word until they are stored."""

import asyncio
from collections.abc import Awaitable, Callable

from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchState, LaunchStatus

_Key = tuple[str, int]
# Settles one end; returns whether that is done.
Settle = Callable[[LaunchRef, LaunchStatus], Awaitable[bool]]


class Endings:
    """Settles what each launch was told of, in order and until it is done.

    Settling reads storage, so each launch has a task of its own.
    """

    def __init__(self, settle: Settle) -> None:
        self._settle = settle
        self._pending: dict[_Key, list[tuple[LaunchRef, LaunchStatus]]] = {}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    def note(self, ref: LaunchRef, status: LaunchStatus) -> None:
        """Keep an end until it is settled; one that is known, or tells no more, is dropped."""
        pending = self._pending.setdefault((ref.job_id, ref.launch), [])
        if any(known == status for _, known in pending):
            return
        over = [item for item in pending if item[1].state is not LaunchState.WAITING]
        if over:
            # Of a launch that was stopped, why it was stopped says more than that it was.
            if status.state is LaunchState.WAITING or status.end in (None, LaunchEnd.STOPPED):
                return
            pending.remove(over[0])
        pending.append((ref, status))

    def has(self, ref: LaunchRef) -> bool:
        """Whether something of a launch is not settled yet."""
        return (ref.job_id, ref.launch) in self._pending

    def work(self) -> None:
        """Begin, or begin again, to settle what is not under way."""
        for key in self._pending:
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._run(key))

    async def close(self) -> None:
        """Stop; what is not settled will be told again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: _Key) -> None:
        pending = self._pending[key]
        try:
            while pending:
                item = pending[0]
                if not await self._settle(*item):
                    return
                if item in pending:
                    pending.remove(item)
            del self._pending[key]
        finally:
            del self._tasks[key]
