"""What every JobStore must do. Another backend is one more entry of ``BACKENDS``."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lighten_service.jobs.filter import Filter, Term
from lighten_service.jobs.ports import Decide, JobStore, StoreChange
from lighten_service.jobs.record import Attempt, Change, JobRecord, Launch
from lighten_service.store import open_store
from lighten_service.store.hub import PENDING_LIMIT

BACKENDS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/lighten.db",
}

ALL = Filter()


class Ticking:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time


@pytest.fixture(params=sorted(BACKENDS))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
async def store(url: str, clock: Ticking) -> AsyncIterator[JobStore]:
    store = await open_store(url, clock=clock)
    yield store
    await store.close()


def new_job(
    job_id: str,
    *,
    project: str = "default",
    state: pb.JobState.ValueType = pb.JOB_STATE_QUEUED,
    created: float = 100.0,
    request_id: str = "",
    **fields: object,
) -> JobRecord:
    name = f"projects/{project}/jobs/{job_id}"
    job = pb.Job(name=name, state=state, **fields)  # type: ignore[arg-type]
    job.create_time.FromNanoseconds(round(created * 1e9))
    return JobRecord(project=project, job_id=job_id, job=job, request_id=request_id)


def state_event(state: pb.JobState.ValueType) -> pb.JobEvent:
    return pb.JobEvent(state_changed=pb.StateChanged(to=state))


def log_event(text: str) -> pb.JobEvent:
    return pb.JobEvent(log=pb.LogLine(message=text))


def to_state(state: pb.JobState.ValueType, *events: pb.JobEvent) -> Decide:
    def decide(record: JobRecord) -> Change:
        job = pb.Job()
        job.CopyFrom(record.job)
        job.state = state
        return Change(replace(record, job=job), events or (state_event(state),))

    return decide


def add_events(*events: pb.JobEvent) -> Decide:
    return lambda record: Change(record, events)


async def ids(store: JobStore, *terms: Term, project: str = "default") -> list[str]:
    return [job.job_id for job in await store.list_jobs(project, Filter(terms), limit=100)]


# --- create -------------------------------------------------------------------------------------


async def test_create_returns_what_is_stored(store: JobStore, clock: Ticking) -> None:
    record = replace(
        new_job("a", labels={"team": "vision"}, techniques=["calibrate"], model_sha256="ab"),
        inputs=(pb.ResolvedInput(field="model.artifact", uri="s3://b/m"),),
        launch=Launch(2, "pid:1", ended=True),
        attempts=(Attempt(1, 1, "x", acked_event=7), Attempt(2, 2, "y")),
        not_before=5.5,
        run_seconds=3.25,
        running_since=4.0,
        cancel_requested_at=6.0,
        last_heartbeat=7.0,
    )
    stored = await store.create(record, [state_event(pb.JOB_STATE_QUEUED), log_event("hello")])

    assert stored.revision == 1
    assert stored.job.last_sequence == 2
    assert stored.job.update_time.ToSeconds() == clock.time
    whole = replace(stored, inputs=record.inputs)
    assert await store.get("default", "a") == whole
    assert await store.find("a") == whole
    job = pb.Job()
    job.CopyFrom(stored.job)
    job.ClearField("last_sequence")
    job.ClearField("update_time")
    assert replace(whole, revision=0, job=job) == record

    first, second = await store.events("a", 0, 10)
    assert [first.sequence, second.sequence] == [1, 2]
    assert first.job == second.job == "projects/default/jobs/a"
    assert second.time.ToSeconds() == clock.time
    assert second.log.message == "hello"


async def test_create_leaves_its_arguments_alone(store: JobStore) -> None:
    record, event = new_job("a"), log_event("x")
    before = record.job.SerializeToString(), event.SerializeToString()
    await store.create(record, [event])
    assert (record.job.SerializeToString(), event.SerializeToString()) == before


async def test_create_keeps_the_time_of_an_event_that_has_one(store: JobStore) -> None:
    event = log_event("x")
    event.time.FromSeconds(12)
    await store.create(new_job("a"), [event])
    assert [event.time.ToSeconds() for event in await store.events("a", 0, 10)] == [12]


async def test_a_repeated_request_id_returns_the_first_job(store: JobStore) -> None:
    first = await store.create(new_job("a", request_id="r"), [log_event("x")])
    again = await store.create(new_job("b", request_id="r"), [log_event("x")])
    assert again == first
    assert await store.find("b") is None
    assert await store.events("b", 0, 10) == []
    other = await store.create(new_job("c", project="other", request_id="r"), [])
    assert other.job_id == "c"
    assert (await store.create(new_job("d"), [])).job_id == "d"
    assert (await store.create(new_job("e"), [])).job_id == "e"


async def test_find_request_goes_by_project_and_request_id(store: JobStore) -> None:
    stored = await store.create(new_job("a", request_id="r"), [])
    await store.create(new_job("b"), [])
    assert await store.find_request("default", "r") == stored
    assert await store.find_request("default", "s") is None
    assert await store.find_request("other", "r") is None


async def test_raced_creates_of_one_request_make_one_job(store: JobStore) -> None:
    made = await asyncio.gather(
        *(store.create(new_job(f"j{i}", request_id="r"), [log_event("x")]) for i in range(100))
    )
    assert len({record.job_id for record in made}) == 1
    assert len(await ids(store)) == 1
    assert len(await store.events(made[0].job_id, 0, 10)) == 1


async def test_an_id_that_is_taken_harms_nobody_else(store: JobStore) -> None:
    await store.create(new_job("a"), [log_event("first")])
    outcomes = await asyncio.gather(
        *(store.create(new_job(name), [log_event("second")]) for name in ("b", "a", "c")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], Internal)
    assert await ids(store) == ["c", "b", "a"]
    assert [event.log.message for event in await store.events("a", 0, 10)] == ["first"]


async def test_max_queued_counts_the_queued_jobs_of_the_project(store: JobStore) -> None:
    outcomes = await asyncio.gather(
        *(store.create(new_job(f"j{i}"), [], max_queued=3) for i in range(8)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, ResourceExhausted)]
    assert len(refused) == 5
    assert refused[0].reason == "QUEUE_FULL"
    await store.create(new_job("other", project="other"), [], max_queued=3)
    await store.update("j0", to_state(pb.JOB_STATE_RUNNING))
    await store.create(new_job("next"), [], max_queued=3)


async def test_max_queued_lets_a_repeated_request_through(store: JobStore) -> None:
    await store.create(new_job("a", request_id="r"), [], max_queued=1)
    again = await store.create(new_job("b", request_id="r"), [], max_queued=1)
    assert again.job_id == "a"


async def test_inputs_stay_as_created_and_come_with_one_job_alone(store: JobStore) -> None:
    inputs = (
        pb.ResolvedInput(field="model.artifact", uri="s3://b/m"),
        pb.ResolvedInput(field="calibration.data", uri="s3://b/c/", files=[pb.InputFile(path="x")]),
    )
    seen: list[JobRecord] = []

    def change(record: JobRecord) -> Change:
        seen.append(record)
        return Change(replace(record, run_seconds=1.0, inputs=inputs[:1]))

    async with store.subscribe() as changes:
        # The first two may meet in one group: the update then sees a job that is not written yet.
        seen += await asyncio.gather(
            store.create(replace(new_job("a", request_id="r"), inputs=inputs), []),
            store.update("a", change),
        )
        seen.append(await store.update("a", change))
        seen += [change.record for change in await take(changes, 3) if change.record]
    seen.append(await store.create(replace(new_job("b", request_id="r"), inputs=inputs), []))
    by_request = await store.find_request("default", "r")
    assert by_request is not None
    seen += [by_request, *await store.list_jobs("default", ALL, limit=9), *await store.live()]
    assert [(record.job_id, record.inputs) for record in seen] == [("a", ())] * 12

    assert (await store.get("default", "a")).inputs == inputs
    found = await store.find("a")
    assert found is not None
    assert (found.run_seconds, found.inputs) == (1.0, inputs)


# --- get and list -------------------------------------------------------------------------------


async def test_a_job_is_not_found_from_another_project(store: JobStore) -> None:
    await store.create(new_job("a"), [])
    for project, job_id in (("other", "a"), ("default", "b")):
        with pytest.raises(NotFound) as raised:
            await store.get(project, job_id)
        assert raised.value.reason == "JOB_NOT_FOUND"
    assert await store.find("b") is None


async def test_list_pages_newest_first_without_gaps_or_repeats(store: JobStore) -> None:
    # Ties in the create time, and times that are no round numbers.
    created = [100.1, 100.1, 100.1, 100.3333333, 99.9, 1_700_000_000.123456789]
    for number, when in enumerate(created):
        await store.create(new_job(f"j{number}", created=when), [])
    await store.create(new_job("x", project="other"), [])

    seen: list[JobRecord] = []
    before = None
    while page := await store.list_jobs("default", ALL, limit=2, before=before):
        assert len(page) <= 2
        seen += page
        before = (page[-1].create_time, page[-1].job_id)
    assert [record.job_id for record in seen] == ["j5", "j3", "j2", "j1", "j0", "j4"]


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([("state", "=", "RUNNING")], "b"),
        ([("state", "!=", "RUNNING")], "ca"),
        ([("labels.team", "=", "vision")], "ba"),
        ([("labels.team", "!=", "vision")], "c"),
        ([("labels.team", "=", "audio")], "c"),
        ([("labels.missing", "=", "x")], ""),
        ([("labels.missing", "!=", "x")], "cba"),
        ([("technique", "=", "calibrate")], "cb"),
        ([("technique", "!=", "calibrate")], "a"),
        ([("model_sha256", "=", "aa")], "a"),
        ([("model_sha256", "!=", "aa")], "cb"),
        ([("create_time", ">", "20")], "c"),
        ([("create_time", ">=", "20")], "cb"),
        ([("create_time", "<", "20")], "a"),
        ([("create_time", "<=", "20")], "ba"),
        ([("create_time", "=", "20")], "b"),
        ([("create_time", "!=", "20")], "ca"),
        ([("labels.team", "=", "vision"), ("labels.gpu", "=", "a10")], "b"),
        ([("state", "!=", "FAILED"), ("technique", "=", "calibrate")], "b"),
    ],
)
async def test_list_filters(
    store: JobStore, terms: list[tuple[str, str, str]], expected: str
) -> None:
    await store.create(new_job("a", created=10, labels={"team": "vision"}, model_sha256="aa"), [])
    await store.create(
        new_job(
            "b",
            created=20,
            state=pb.JOB_STATE_RUNNING,
            labels={"team": "vision", "gpu": "a10"},
            techniques=["fold_batch_norms", "calibrate"],
        ),
        [],
    )
    failed = pb.JOB_STATE_FAILED
    fields = {"labels": {"team": "audio"}, "techniques": ["calibrate", "calibrate"]}
    await store.create(new_job("c", created=30, state=failed, **fields), [])
    await store.create(new_job("d", created=20, project="other", **fields), [])
    where = Filter(tuple(Term(*term) for term in terms))  # type: ignore[arg-type]
    assert "".join(await ids(store, *where.terms)) == expected
    # WatchJobs applies the same filter to jobs in memory.
    records = await store.list_jobs("default", ALL, limit=10)
    assert "".join(r.job_id for r in records if where.matches(r.job)) == expected


@pytest.mark.parametrize(
    "term",
    [
        Term("state", "=", "NO_SUCH"),
        Term("state", "<", "RUNNING"),
        Term("create_time", "=", "yesterday"),
        Term("colour", "=", "red"),
    ],
)
async def test_a_term_that_means_nothing_is_refused(store: JobStore, term: Term) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await store.list_jobs("default", Filter((term,)), limit=1)
    assert raised.value.reason == "INVALID_FILTER"


async def test_filters_follow_what_an_update_changes(store: JobStore) -> None:
    await store.create(new_job("a", labels={"team": "vision"}, techniques=["calibrate"]), [])

    def relabel(record: JobRecord) -> Change:
        job = pb.Job()
        job.CopyFrom(record.job)
        job.labels["team"] = "audio"
        job.techniques[:] = ["fold_batch_norms"]
        job.model_sha256 = "ff"
        return Change(replace(record, job=job))

    await store.update("a", relabel)
    assert await ids(store, Term("labels.team", "=", "vision")) == []
    assert await ids(store, Term("technique", "=", "calibrate")) == []
    for term in (
        Term("labels.team", "=", "audio"),
        Term("technique", "=", "fold_batch_norms"),
        Term("model_sha256", "=", "ff"),
    ):
        assert await ids(store, term) == ["a"]


async def test_live_and_counts(store: JobStore) -> None:
    states = [state for state in pb.JobState.values() if state != pb.JOB_STATE_UNSPECIFIED]
    for number, state in enumerate(states):
        project = "other" if number % 2 else "default"
        job = new_job(f"j{state}", project=project, state=state, created=50 - number)
        await store.create(job, [])
    live = [record.job.state for record in await store.live()]
    assert live == [
        pb.JOB_STATE_CANCELLING,
        pb.JOB_STATE_RUNNING,
        pb.JOB_STATE_STARTING,
        pb.JOB_STATE_QUEUED,
    ]
    assert await store.counts() == dict.fromkeys(states, 1)


# --- update -------------------------------------------------------------------------------------


async def test_update_writes_record_and_events_together(store: JobStore, clock: Ticking) -> None:
    created = await store.create(new_job("a"), [state_event(pb.JOB_STATE_QUEUED)])
    clock.time = 2_000.0
    events = [state_event(pb.JOB_STATE_RUNNING), log_event("begin")]
    updated = await store.update("a", to_state(pb.JOB_STATE_RUNNING, *events))
    assert (updated.revision, updated.job.last_sequence) == (2, 3)
    assert updated.job.update_time.ToSeconds() == 2_000
    assert created.job.state == pb.JOB_STATE_QUEUED
    assert await store.get("default", "a") == updated
    assert [event.sequence for event in await store.events("a", 0, 10)] == [1, 2, 3]


async def test_update_of_no_job_is_not_found(store: JobStore) -> None:
    with pytest.raises(NotFound) as raised:
        await store.update("a", to_state(pb.JOB_STATE_RUNNING))
    assert raised.value.reason == "JOB_NOT_FOUND"


async def test_a_decision_may_leave_the_job_alone(store: JobStore) -> None:
    created = await store.create(new_job("a"), [])
    assert await store.update("a", lambda record: None) == created
    assert await store.get("default", "a") == created


async def test_a_decision_that_raises_writes_nothing(store: JobStore) -> None:
    await store.create(new_job("a"), [log_event("first")])

    def refuse(record: JobRecord) -> Change | None:
        raise ZeroDivisionError("no")

    outcomes = await asyncio.gather(
        store.update("a", add_events(log_event("second"))),
        store.update("a", refuse),
        store.update("a", add_events(log_event("third"))),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], ZeroDivisionError)
    record = await store.get("default", "a")
    assert (record.revision, record.job.last_sequence) == (3, 3)
    messages = [event.log.message for event in await store.events("a", 0, 10)]
    assert messages == ["first", "second", "third"]


async def test_a_change_that_cannot_be_stored_harms_nobody_else(store: JobStore) -> None:
    await store.create(new_job("a"), [])
    await store.create(new_job("b"), [])
    unstorable = replace(await store.get("default", "a"), not_before="soon")  # type: ignore[arg-type]
    unstorable = replace(unstorable, launch=Launch(1, handle=object()))  # type: ignore[arg-type]
    outcomes = await asyncio.gather(
        store.update("b", add_events(log_event("one"))),
        store.update("a", lambda record: Change(unstorable, [log_event("never")])),
        store.update("b", add_events(log_event("two"))),
        return_exceptions=True,
    )
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, False]
    assert (await store.get("default", "a")).revision == 1
    assert await store.events("a", 0, 10) == []
    assert [event.sequence for event in await store.events("b", 0, 10)] == [1, 2]


async def test_concurrent_updates_lose_nothing(store: JobStore) -> None:
    await store.create(new_job("a"), [])
    await store.create(new_job("b"), [])
    number = 400

    def count(record: JobRecord) -> Change:
        seconds = record.run_seconds + 1
        return Change(
            replace(record, run_seconds=seconds), [log_event(f"{seconds}"), log_event("")]
        )

    updated = await asyncio.gather(*(store.update("ab"[i % 2], count) for i in range(2 * number)))
    for job_id in "ab":
        record = await store.get("default", job_id)
        assert record.run_seconds == number
        assert (record.revision, record.job.last_sequence) == (number + 1, 2 * number)
        events = await store.events(job_id, 0, 10_000)
        assert [event.sequence for event in events] == list(range(1, 2 * number + 1))
        assert [float(event.log.message) for event in events[::2]] == list(range(1, number + 1))
    assert len({(record.job_id, record.revision) for record in updated}) == 2 * number


# --- events -------------------------------------------------------------------------------------


async def test_events_after_a_sequence(store: JobStore) -> None:
    await store.create(new_job("a"), [log_event(str(number)) for number in range(1, 11)])
    await store.create(new_job("b"), [log_event("other")])

    async def sequences(after: int, limit: int) -> list[int]:
        return [event.sequence for event in await store.events("a", after, limit)]

    assert await sequences(0, 3) == [1, 2, 3]
    assert await sequences(7, 100) == [8, 9, 10]
    assert await sequences(10, 100) == []
    assert await store.events("none", 0, 100) == []


async def test_trim_removes_progress_and_logs_of_finished_jobs(store: JobStore) -> None:
    progress = pb.JobEvent(progress=pb.Progress(done=1))
    events = [state_event(pb.JOB_STATE_QUEUED), progress, log_event("x"), progress]
    for job_id, end in (("old", 50), ("new", 500), ("live", 0)):
        await store.create(new_job(job_id), events)
        if end:
            await store.update(job_id, _finish_at(end))

    assert await store.trim(100.0) == 3
    assert [event.sequence for event in await store.events("old", 0, 10)] == [1, 5]
    assert await store.first_retained("old") == 5
    for job_id in ("new", "live"):
        assert len(await store.events(job_id, 0, 10)) >= 4
        assert await store.first_retained(job_id) == 1
    assert await store.trim(100.0) == 0
    assert (await store.update("old", add_events(log_event("late")))).job.last_sequence == 6
    assert await store.trim(1_000.0) == 4
    assert await store.first_retained("old") == 7


def _finish_at(seconds: int) -> Decide:
    def decide(record: JobRecord) -> Change:
        job = pb.Job()
        job.CopyFrom(record.job)
        job.state = pb.JOB_STATE_SUCCEEDED
        job.end_time.FromSeconds(seconds)
        return Change(replace(record, job=job), [state_event(pb.JOB_STATE_SUCCEEDED)])

    return decide


async def test_trim_of_many_jobs(store: JobStore) -> None:
    finished = [new_job(f"j{i}", state=pb.JOB_STATE_FAILED) for i in range(230)]
    await asyncio.gather(*(store.create(record, [log_event("x")]) for record in finished))
    assert await store.trim(100.0) == 230


async def test_delete(store: JobStore) -> None:
    await store.create(new_job("a", labels={"x": "y"}, request_id="r"), [log_event("x")])
    await store.create(new_job("b"), [log_event("x")])
    await store.delete("a")
    await store.delete("a")
    assert await store.find("a") is None
    assert await store.events("a", 0, 10) == []
    assert await store.first_retained("a") == 1
    assert len(await store.events("b", 0, 10)) == 1
    with pytest.raises(NotFound):
        await store.update("a", add_events())
    assert (await store.create(new_job("a", request_id="r"), [])).job.last_sequence == 0


async def test_requests_that_meet_in_one_group_see_each_other(store: JobStore) -> None:
    created, updated, _, gone, again = await asyncio.gather(
        store.create(new_job("a"), [log_event("x")]),
        store.update("a", add_events(log_event("y"))),
        store.delete("a"),
        store.update("a", add_events(log_event("z"))),
        store.create(new_job("a"), [log_event("new")]),
        return_exceptions=True,
    )
    assert isinstance(created, JobRecord)
    assert isinstance(updated, JobRecord)
    assert updated.job.last_sequence == 2
    assert isinstance(gone, NotFound)
    assert isinstance(again, JobRecord)
    assert [event.log.message for event in await store.events("a", 0, 10)] == ["new"]


# --- subscribe ----------------------------------------------------------------------------------


async def take(changes: AsyncIterator[StoreChange], number: int) -> list[StoreChange]:
    async with asyncio.timeout(10):
        return [await anext(changes) for _ in range(number)]


async def test_subscribers_see_commits_in_order(store: JobStore) -> None:
    await store.create(new_job("before"), [log_event("x")])
    async with store.subscribe() as one, store.subscribe() as two:
        await store.create(new_job("a"), [log_event("0")])
        updates = [store.update("a", add_events(log_event("x"), log_event("y"))) for _ in range(50)]
        await asyncio.gather(*updates)
        await store.update("a", lambda record: None)
        await store.delete("a")
        first, second = await take(one, 52), await take(two, 52)
    assert first == second
    assert {(change.project, change.job_id) for change in first} == {("default", "a")}
    sequences = [event.sequence for change in first for event in change.events]
    assert sequences == list(range(1, 102))
    assert [change.deleted for change in first] == [False] * 51 + [True]


async def test_what_a_subscriber_hears_can_be_read(store: JobStore) -> None:
    async with store.subscribe() as changes:
        write = asyncio.create_task(store.create(new_job("a"), [log_event("x")]))
        (change,) = await take(changes, 1)
        stored = await store.events(change.job_id, 0, 10)
        assert stored == list(change.events)
        await write


async def test_a_slow_subscriber_is_sent_to_the_store(store: JobStore) -> None:
    number = PENDING_LIMIT + 500
    async with store.subscribe() as slow:
        await store.create(new_job("a"), [])
        await store.create(new_job("b"), [])
        await asyncio.gather(
            *(store.update("a", add_events(log_event("x"))) for _ in range(number))
        )
        await store.update("b", add_events(log_event("x")))
        await store.delete("b")
        waiting = await take(slow, 10)
        # There is room again, and still what did not fit comes before what is new.
        await store.update("a", add_events(log_event("x")))
        waiting += await take(slow, PENDING_LIMIT - 8)
        # Caught up: events come along again.
        await store.update("a", add_events(log_event("last")))
        (last,) = await take(slow, 1)
    told = [event.sequence for change in waiting for event in change.events]
    assert told == list(range(1, PENDING_LIMIT - 1))
    a, b = waiting[-2:]
    assert (a.job_id, a.events, a.deleted) == ("a", (), False)
    assert (b.job_id, b.events, b.deleted) == ("b", (), True)
    assert [event.sequence for event in last.events] == [number + 2]


# --- secrets, closing, restarting ---------------------------------------------------------------


async def test_a_secret_is_made_once(store: JobStore) -> None:
    made = itertools.count()

    def make() -> bytes:
        return b"secret %d" % next(made)

    values = await asyncio.gather(*(store.secret("signing", make) for _ in range(50)))
    assert set(values) == {b"secret 0"}
    assert await store.secret("other", make) == b"secret 1"


async def test_close_writes_what_was_asked_for_and_ends_subscriptions(
    url: str, clock: Ticking
) -> None:
    store = await open_store(url, clock=clock)
    async with store.subscribe() as changes:
        creates = [asyncio.ensure_future(store.create(new_job(f"j{i}"), [])) for i in range(20)]
        await asyncio.sleep(0)
        await store.close()
        await store.close()
        assert len([change async for change in changes]) == 20
    assert all(create.done() for create in creates)
    for call in (store.live(), store.delete("j0")):
        with pytest.raises(Unavailable) as raised:
            await call
        assert raised.value.reason == "STORE_UNAVAILABLE"


async def test_everything_is_there_after_a_restart(url: str, clock: Ticking) -> None:
    store = await open_store(url, clock=clock)
    await store.create(new_job("a", labels={"x": "y"}, request_id="r"), [log_event("x")])
    record = await store.update("a", to_state(pb.JOB_STATE_RUNNING))
    events = await store.events("a", 0, 10)
    secret = await store.secret("s", lambda: b"value")
    await store.close()

    store = await open_store(url, clock=clock)
    assert await store.get("default", "a") == record
    assert await store.live() == [record]
    assert await store.events("a", 0, 10) == events
    assert await store.secret("s", lambda: b"another") == secret
    assert (await store.create(new_job("b", request_id="r"), [])).job_id == "a"
    assert (await store.update("a", add_events(log_event("y")))).job.last_sequence == 3
    await store.close()


_STREAM_OF_WRITES = """
import asyncio, os, sys, time
from lighten import v1 as pb
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.store import open_store

class Wall:
    now = staticmethod(time.time)

def tell(line):
    os.write(1, (line + "\\n").encode())

async def writer(store, number):
    for round in range(1_000_000):
        job_id = f"w{number}-{round}"
        job = pb.Job(name=f"projects/default/jobs/{job_id}", state=pb.JOB_STATE_QUEUED)
        event = pb.JobEvent(log=pb.LogLine(message="new"))
        await store.create(JobRecord("default", job_id, job), [event])
        tell(f"{job_id} 1")
        for _ in range(3):
            event = pb.JobEvent(log=pb.LogLine(message="more"))
            record = await store.update(job_id, lambda r: Change(r, [event, event]))
            tell(f"{job_id} {record.job.last_sequence}")

async def main():
    store = await open_store(sys.argv[1], clock=Wall())
    await asyncio.gather(*(writer(store, number) for number in range(16)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(url: str, clock: Ticking) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _STREAM_OF_WRITES, url], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(600)]
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    # The last line may be cut in the middle.
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.endswith("\n"):
            job_id, sequence = line.split()
            acknowledged[job_id] = int(sequence)
    assert len(acknowledged) > 100

    began = time.monotonic()
    store = await open_store(url, clock=clock)
    assert time.monotonic() - began < 5
    for job_id, sequence in acknowledged.items():
        record = await store.get("default", job_id)
        assert record.job.last_sequence >= sequence
        events = await store.events(job_id, 0, 100)
        assert [event.sequence for event in events] == list(range(1, record.job.last_sequence + 1))
    await store.close()
