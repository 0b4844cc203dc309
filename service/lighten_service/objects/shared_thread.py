"""Quick calls of one kind, run on a thread in groups."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_Call = tuple[Callable[[], T], asyncio.Future[T]]


class SharedThread(Generic[T]):
    """Runs what waits together in one go on one thread.

    To go to a thread and back costs more than the look at a file for which one goes there. While
    one group runs, calls gather; the next group takes them all. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._waiting: list[_Call[T]] = []
        self._busy = False

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returned on the thread, or raise what it raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((call, future))
        if not self._busy:
            self._busy = True
            # Not at once, so that the tasks that are ready now come along.
            loop.call_soon(self._start, loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        group, self._waiting = self._waiting, []
        work = loop.run_in_executor(None, _run, [call for call, _ in group])
        work.add_done_callback(lambda done: self._finish(loop, group, done.result()))

    def _finish(
        self, loop: asyncio.AbstractEventLoop, group: list[_Call[T]], outcomes: list["_Outcome[T]"]
    ) -> None:
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if not future.done():  # else its caller went away
                outcome(future)
        if self._waiting:
            self._start(loop)
        else:
            self._busy = False


# Puts a result or an error into a future.
_Outcome = Callable[[asyncio.Future[T]], None]


def _run(calls: list[Callable[[], T]]) -> list[_Outcome[T]]:
    return [_outcome(call) for call in calls]


def _outcome(call: Callable[[], T]) -> _Outcome[T]:
    try:
        result = call()
    except Exception as error:  # It belongs to the caller, on another thread.
        raised = error
        return lambda future: future.set_exception(raised)
    return lambda future: future.set_result(result)
