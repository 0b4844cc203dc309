"""Work ahead of the consumer in a few threads, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from lighten_service.worker.machine import cpus

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 4


def default_threads() -> int:
    """Return the number of decoding threads: the CPUs of this process, at most 4."""
    return min(MAX_THREADS, cpus())


def prefetch(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item in order, up to ``ahead`` of them computed early.

    What ``function`` raises is raised here at that item's turn. Threads start with the first
    item and have stopped when the iterator is exhausted, closed or has raised.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dataset")
    try:
        pending: deque[Future[R]] = deque(
            pool.submit(function, item) for item in islice(source, ahead)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
