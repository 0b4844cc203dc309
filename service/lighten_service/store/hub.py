"""Tells subscribers in this process what was committed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from lighten_service.jobs.ports import StoreChange

# Changes that wait for one subscriber with their events.
PENDING_LIMIT = 1024


class Hub:
    """Fans changes out. Belongs to one event loop; publishing never waits for a subscriber."""

    def __init__(self, limit: int = PENDING_LIMIT) -> None:
        self._limit = limit
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def publish(self, changes: Iterable[StoreChange]) -> None:
        for change in changes:
            for subscription in self._subscriptions:
                subscription.put(change)

    @contextmanager
    def subscribe(self) -> Iterator["Subscription"]:
        subscription = Subscription(self._limit)
        if self._closed:
            subscription.close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription once its reader has seen what was published before."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()


class Subscription(AsyncIterator[StoreChange]):
    """What one subscriber has not read yet.

    Beyond ``limit`` changes it keeps one for each job, without events: the reader looks into the
    store instead, and memory grows with the jobs that changed, not with their events.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: deque[StoreChange] = deque()
        self._overflow: dict[str, StoreChange] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, change: StoreChange) -> None:
        # Once there is overflow all goes there until it is read, which keeps a job's order.
        if not self._overflow and len(self._pending) < self._limit:
            self._pending.append(change)
        else:
            self._overflow[change.job_id] = StoreChange(
                change.project, change.job_id, deleted=change.deleted
            )
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def __anext__(self) -> StoreChange:
        while True:
            if self._pending:
                return self._pending.popleft()
            if self._overflow:
                return self._overflow.pop(next(iter(self._overflow)))
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
