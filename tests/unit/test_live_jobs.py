"""The reconciler's view, the pauses of what is put off, and ends until they are settled."""

import asyncio

from lighten import v1 as pb
from lighten_service.jobs.delays import Delays
from lighten_service.jobs.endings import Endings
from lighten_service.jobs.live import LOOK_SECONDS, LiveJobs
from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchState, LaunchStatus
from lighten_service.jobs.record import JobRecord, Launch
from lighten_service.jobs.transitions import timestamp

REF = LaunchRef("a", 1, "handle")
LATER = 7 * 24 * 3600.0


def record(
    job_id: str = "a",
    state: pb.JobState.ValueType = pb.JOB_STATE_QUEUED,
    *,
    revision: int = 1,
    launch: Launch | None = None,
    not_before: float = 0.0,
) -> JobRecord:
    job = pb.Job(name=f"projects/default/jobs/{job_id}", state=state)
    job.queue_time.CopyFrom(timestamp(0.0))
    job.resolved_spec.resources.queue_timeout.FromSeconds(int(LATER))
    return JobRecord(
        "default", job_id, job, revision=revision, launch=launch, not_before=not_before
    )


def awake(live: LiveJobs, now: float) -> list[str]:
    return [one.job_id for one in live.awake(now)]


def test_jobs_that_wait_for_capacity_rest_until_their_timeout() -> None:
    live = LiveJobs([record("a"), record("b", not_before=5.0)])
    assert [one.job_id for one in live.unplaced()] == ["a", "b"]
    assert awake(live, 1.0) == ["b"]
    assert sorted(awake(live, LATER)) == ["a", "b"]
    assert sorted(awake(live, LATER + 1)) == ["a", "b"]


def test_launches_that_wait_for_a_worker_are_looked_at_now_and_then() -> None:
    live = LiveJobs([record(launch=Launch(1, "handle"))])
    assert live.unplaced() == []
    assert awake(live, 100.0) == ["a"]
    assert awake(live, 100.0 + LOOK_SECONDS / 2) == []
    assert awake(live, 100.0 + LOOK_SECONDS) == ["a"]
    # And when its time in the queue is over, to the second.
    assert awake(live, LATER - 1) == ["a"]
    assert awake(live, LATER) == ["a"]
    assert awake(live, LATER + 1) == []
    assert awake(live, LATER + LOOK_SECONDS) == ["a"]


def test_launches_that_have_a_worker_or_must_end_are_looked_at_always() -> None:
    live = LiveJobs(
        [
            record("run", pb.JOB_STATE_RUNNING, launch=Launch(1, "handle")),
            record("spent", launch=Launch(1, "handle", spent=True)),
            record("asked", launch=Launch(1)),
        ]
    )
    for now in (1.0, 1.1):
        assert awake(live, now) == ["run", "spent", "asked"]
    assert [one.job_id for one in live.unplaced(["run", "asked", "gone"])] == ["asked"]


def test_older_news_change_nothing() -> None:
    live = LiveJobs([record(revision=5, launch=Launch(1, "handle"))])
    live.put(record(revision=4))
    known = live.get("a")
    assert known is not None
    assert known.revision == 5
    live.remove("a")
    assert (list(live), live.awake(1.0), live.unplaced()) == ([], [], [])


def test_what_is_alike_waits_together_and_ever_longer() -> None:
    delays, gpu = Delays(), pb.Resources(gpus=1, priority=5)
    delays.put_off(gpu, "the quota is used up", 10.0)
    alike = pb.Resources(gpus=1, max_retries=7)
    assert delays.reason(alike, 10.9) == "the quota is used up"
    assert delays.reason(pb.Resources(gpus=2), 10.9) is None
    assert delays.reason(alike, 11.0) is None
    # Eight that were on their way together make one pause.
    for _ in range(8):
        delays.put_off(gpu, "still", 11.0)
    assert (delays.reason(gpu, 12.9), delays.reason(gpu, 13.0)) == ("still", None)
    for _ in range(10):
        delays.put_off(gpu, "still", now := 1000.0 + 100 * _)
    assert (delays.reason(gpu, now + 29.9), delays.reason(gpu, now + 30.0)) == ("still", None)
    delays.over(alike)
    assert delays.reason(gpu, now) is None


def waiting(pod: str) -> LaunchStatus:
    return LaunchStatus(LaunchState.WAITING, LaunchEnd.EVICTED, "evicted", instance_id=pod)


def ended(end: LaunchEnd) -> LaunchStatus:
    return LaunchStatus(LaunchState.ENDED, end, end.value)


async def test_ends_are_settled_in_order_and_until_it_is_done() -> None:
    settled: list[LaunchStatus] = []
    tries = 0

    async def settle(ref: LaunchRef, status: LaunchStatus) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            return False
        await asyncio.sleep(0)
        settled.append(status)
        return True

    endings = Endings(settle)
    told = [waiting("one"), waiting("two"), ended(LaunchEnd.SILENT)]
    for status in (*told, told[0], ended(LaunchEnd.STOPPED), waiting("three")):
        endings.note(REF, status)
    for _ in range(2):
        endings.work()
        await asyncio.sleep(0.05)
    assert settled == told


async def test_end_that_says_more_takes_the_place_of_one_that_failed_to_settle() -> None:
    settled: list[LaunchEnd | None] = []

    async def settle(ref: LaunchRef, status: LaunchStatus) -> bool:
        settled.append(status.end)
        return status.end is LaunchEnd.OUT_OF_MEMORY

    endings = Endings(settle)
    endings.note(REF, ended(LaunchEnd.STOPPED))
    endings.work()
    await asyncio.sleep(0)
    endings.note(LaunchRef("a", 1, ""), ended(LaunchEnd.OUT_OF_MEMORY))
    endings.work()
    await asyncio.sleep(0)
    assert settled == [LaunchEnd.STOPPED, LaunchEnd.OUT_OF_MEMORY]
    await endings.close()
