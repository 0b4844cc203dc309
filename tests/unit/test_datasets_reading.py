"""Selection and prefetch, the parts that every format shares."""

import threading
import time

import numpy as np
import pytest

from lighten_service.worker.datasets.prefetch import prefetch
from lighten_service.worker.datasets.selection import select


@pytest.mark.parametrize(("count", "limit"), [(10, 3), (10, 9), (1000, 7), (1000, 999), (3, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_one_sample_is_drawn_from_each_stretch(count, limit, seed):
    chosen = select(count, limit, seed)
    edges = np.arange(limit + 1) * count // limit
    assert len(chosen) == limit
    assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()


def test_the_choice_is_the_same_on_every_machine():
    assert select(1000, 5, 7).tolist() == [15, 355, 487, 744, 995]


@pytest.mark.parametrize("limit", [0, 10, 11])
def test_all_samples_are_taken_in_order_where_there_is_no_limit(limit):
    assert select(10, limit, 3).tolist() == list(range(10))


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dataset")]


def test_work_goes_on_while_the_consumer_is_busy_and_keeps_its_order():
    started = [threading.Event() for _ in range(20)]

    def work(item: int) -> int:
        started[item].set()
        return item

    results = []
    for item in prefetch(work, range(20), threads=2, ahead=4):
        # The consumer holds this item; the next four are computed without being asked for.
        assert all(event.wait(5) for event in started[item : item + 5])
        results.append(item)
    assert results == list(range(20))


def test_no_more_than_ahead_is_computed_before_it_is_asked_for():
    started: list[int] = []
    iterator = prefetch(lambda item: started.append(item), iter(range(100)), threads=2, ahead=5)
    next(iterator)
    time.sleep(0.1)
    assert len(started) == 6
    iterator.close()
    assert workers() == []


def test_an_error_comes_at_its_turn_and_stops_the_threads():
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    iterator = prefetch(fail_at_three, range(100), threads=2, ahead=8)
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(iterator)
    assert workers() == []
