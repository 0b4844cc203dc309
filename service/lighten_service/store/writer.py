"""One thread that writes, and group commit: what waits together is committed together.

A durable commit costs a wait for the disk. While one transaction waits, requests gather; the next
one takes them all, so that the cost is shared and throughput grows with load.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, TypeVar, cast

from lighten_service.jobs.errors import Unavailable
from lighten_service.jobs.ports import StoreChange
from lighten_service.store.commit import Refused, Written
from lighten_service.store.writes import Write

# Requests in one transaction; bounds its memory and how long the first of them waits.
GROUP_LIMIT = 256
# After a group of so many, whoever comes first waits a moment for the others, which are on their
# way: without it every other transaction would be for one request alone.
CROWD = 8
CROWD_SECONDS = 0.004

T = TypeVar("T")

_Request = tuple[Write[Any], asyncio.Future[Any]]


class GroupWriter:
    """Takes requests on an event loop and runs them in groups on its thread.

    Args:
        run: writes a group durably; raises nothing.
        publish: called on the loop with the changes of each group, in commit order.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Write[Any]]], Written],
        publish: Callable[[Sequence[StoreChange]], None],
    ) -> None:
        self._run = run
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        # None is the last: stop.
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._closed = False
        self._thread = Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, write: Write[T]) -> T:
        """Return what ``write.apply`` returned once it is durable, or raise what it raised.

        Raises:
            Unavailable: reason STORE_UNAVAILABLE.
        """
        if self._closed:
            raise Unavailable("STORE_UNAVAILABLE", "the store is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((write, future))
        return cast(T, await future)

    async def close(self) -> None:
        """Write what is queued, then stop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        stop, size = False, 0
        while not stop:
            requests = self._gather(size)
            size = len(requests)
            stop = requests[-1] is None
            group = [request for request in requests if request is not None]
            if group:
                written = self._run([write for write, _ in group])
                futures = [future for _, future in group]
                # One wake-up of the loop for the whole group.
                self._loop.call_soon_threadsafe(self._resolve, futures, written)

    def _gather(self, before: int) -> list[_Request | None]:
        """Wait for a request, and take with it what waits behind it.

        ``before``: size of the group before, as many as may be expected again.
        """
        requests = [self._queue.get()]
        deadline = monotonic() + (CROWD_SECONDS if before >= CROWD else 0.0)
        with contextlib.suppress(Empty):
            while requests[-1] is not None and len(requests) < GROUP_LIMIT:
                left = deadline - monotonic() if len(requests) < before else 0.0
                requests.append(self._queue.get(block=left > 0, timeout=max(left, 0.0)))
        return requests

    def _resolve(self, futures: Sequence[asyncio.Future[Any]], written: Written) -> None:
        for future, outcome in zip(futures, written.outcomes, strict=True):
            if future.done():  # Its caller went away; what it asked for is written all the same.
                continue
            if isinstance(outcome, Refused):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)
        self._publish(written.changes)
