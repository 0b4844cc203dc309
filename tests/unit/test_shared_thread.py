"""Calls that share a thread."""

import asyncio
import threading

import pytest

from lighten_service.objects.shared_thread import SharedThread


async def test_each_caller_gets_its_own_answer() -> None:
    shared = SharedThread[int]()

    def divide(by: int) -> int:
        return 12 // by

    one, failed, three = await asyncio.gather(
        *(shared.run(lambda by=by: divide(by)) for by in (1, 0, 3)), return_exceptions=True
    )
    assert (one, three) == (12, 4)
    assert isinstance(failed, ZeroDivisionError)
    assert await shared.run(lambda: 7) == 7


async def test_calls_gather_while_a_group_runs() -> None:
    shared = SharedThread[int]()
    release = threading.Event()
    threads: list[int] = []

    def wait() -> int:
        release.wait(10)
        return 0

    def note() -> int:
        threads.append(threading.get_ident())
        return len(threads)

    first = asyncio.create_task(shared.run(wait))
    await asyncio.sleep(0.05)
    rest = [asyncio.create_task(shared.run(note)) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert not threads
    release.set()
    assert await asyncio.gather(first, *rest) == list(range(11))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_caller_that_went_away_leaves_the_others() -> None:
    shared = SharedThread[int]()
    release = threading.Event()

    def wait() -> int:
        release.wait(10)
        return 1

    gone, stays = (asyncio.create_task(shared.run(wait)) for _ in range(2))
    await asyncio.sleep(0.05)
    gone.cancel()
    release.set()
    assert await stays == 1
    with pytest.raises(asyncio.CancelledError):
        await gone
