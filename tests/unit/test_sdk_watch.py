"""The rules of a watch, without a network: what is yielded, when it waits, when it gives up."""

import random

import pytest

from lighten import errors
from lighten import v1 as pb
from lighten._watch import JobsWatchState, JobWatchState, Reconnect, StreamBroken

LOST = errors.Unavailable("gone", reason="TRANSPORT_UNAVAILABLE")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log(length: int) -> list[pb.JobEvent]:
    events = [pb.JobEvent(sequence=number) for number in range(1, length + 1)]
    events[-1].state_changed.to = pb.JOB_STATE_SUCCEEDED
    return events


def snapshot(
    state: pb.JobState.ValueType = pb.JOB_STATE_RUNNING, first: int = 1
) -> pb.WatchJobResponse:
    return pb.WatchJobResponse(
        snapshot=pb.WatchSnapshot(job=pb.Job(state=state), first_retained_sequence=first)
    )


def reconnect(clock: Clock | None = None, **options) -> Reconnect:
    return Reconnect(**{"patience": 60.0, "clock": clock or Clock(), **options})


@pytest.mark.parametrize("seed", range(20))
def test_every_event_comes_once_and_in_order_however_streams_break(seed: int) -> None:
    chance = random.Random(seed)
    events = log(50)
    state = JobWatchState("job", 0, reconnect())
    seen = []
    while not state.finished():
        start = max(0, state.request().after_sequence - chance.randint(0, 3))
        state.receive(snapshot())
        for event in events[start : start + chance.randint(0, 9)]:
            found = state.receive(pb.WatchJobResponse(event=event))
            if found is not None:
                seen.append(found.sequence)
        if not state.finished():
            state.broken(LOST)

    assert seen == list(range(1, 51))


def test_a_gap_in_a_live_job_is_asked_for_again_and_then_refused() -> None:
    state = JobWatchState("job", 0, reconnect())
    for _ in range(2):
        state.receive(snapshot())
    with pytest.raises(StreamBroken) as caught:
        state.receive(pb.WatchJobResponse(event=pb.JobEvent(sequence=3)))
    state.broken(caught.value)
    assert state.request().after_sequence == 0

    state.receive(snapshot())
    with pytest.raises(errors.Internal, match="left out events 1 to 2"):
        state.receive(pb.WatchJobResponse(event=pb.JobEvent(sequence=3)))


def test_events_that_retention_removed_from_a_finished_job_are_no_gap() -> None:
    state = JobWatchState("job", 0, reconnect())
    state.receive(snapshot(pb.JOB_STATE_SUCCEEDED, first=4))

    assert state.receive(pb.WatchJobResponse(event=pb.JobEvent(sequence=4))) is not None
    assert state.receive(pb.WatchJobResponse(event=log(9)[-1])) is not None
    assert state.finished()


def test_a_watch_after_the_terminal_event_ends() -> None:
    state = JobWatchState("job", 9, reconnect())
    state.receive(snapshot(pb.JOB_STATE_FAILED))
    state.ended()

    assert state.finished()


def test_a_stream_that_ends_before_the_job_is_broken() -> None:
    state = JobWatchState("job", 0, reconnect())
    state.receive(snapshot())
    with pytest.raises(StreamBroken):
        state.ended()


def test_errors_before_the_first_message_are_raised_at_once() -> None:
    with pytest.raises(errors.Unavailable):
        reconnect().after(LOST)


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("no job", reason="JOB_NOT_FOUND"),
        errors.OutOfRange("after", reason="SEQUENCE_OUT_OF_RANGE"),
        errors.Internal("a bug", reason="INTERNAL_ERROR"),
        errors.Unauthenticated("who?", reason="UNAUTHENTICATED"),
    ],
)
def test_errors_of_the_service_itself_are_not_tried_again(error: errors.LightenError) -> None:
    rules = reconnect()
    rules.heard()
    with pytest.raises(type(error)):
        rules.after(error)


def test_delays_grow_with_jitter_and_start_over_after_a_message() -> None:
    rules = reconnect()
    rules.heard()
    delays = [rules.after(LOST) for _ in range(8)]

    assert 0.1 <= delays[0] <= 0.2
    assert all(5.0 <= delay <= 10.0 for delay in delays[6:])
    rules.heard()
    assert rules.after(LOST) <= 0.2


def test_gives_up_when_patience_is_over_counted_from_the_break() -> None:
    clock, told = Clock(), []
    rules = reconnect(clock, on_reconnect=lambda error, delay: told.append(delay))
    rules.heard()
    clock.now = 10_000.0  # a quiet hour is no break
    rules.after(LOST)
    clock.now += 59.0
    rules.after(LOST)
    clock.now += 2.0
    with pytest.raises(errors.Unavailable):
        rules.after(LOST)
    assert len(told) == 2


def test_the_deadline_bounds_delays_and_is_an_error_of_its_own() -> None:
    clock = Clock()
    rules = reconnect(clock, timeout=5.0)
    rules.heard()
    clock.now = 4.95
    assert rules.after(LOST) <= 0.05 + 1e-9
    clock.now = 5.0
    with pytest.raises(errors.DeadlineExceeded, match="not finished within 5 s"):
        rules.after(LOST)


def test_jobs_that_went_away_during_a_break_are_told_before_synced() -> None:
    def job(name: str) -> pb.WatchJobsResponse:
        return pb.WatchJobsResponse(job=pb.Job(name=name))

    synced = pb.WatchJobsResponse(synced=pb.Synced())
    state = JobsWatchState("projects/default", "", reconnect())
    state.request()
    for response in (job("a"), job("b"), job("c"), synced):
        assert state.receive(response) == [response]
    assert state.receive(pb.WatchJobsResponse(removed="c")) == [pb.WatchJobsResponse(removed="c")]

    state.request()
    assert state.receive(job("b")) == [job("b")]
    assert state.receive(synced) == [pb.WatchJobsResponse(removed="a"), synced]
