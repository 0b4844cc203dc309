"""Blocking iterators in a thread, some items at a time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


async def in_batches(
    run: Callable[[Callable[[], list[T]]], Awaitable[list[T]]], items: Iterator[T], size: int
) -> AsyncIterator[T]:
    """Yield the items, taking ``size`` of them in each call of ``run`` (a hop to a thread)."""
    while batch := await run(lambda: list(islice(items, size))):
        for item in batch:
            yield item
