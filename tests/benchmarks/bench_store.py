"""The store alone: durable creates and updates at 64 in flight, and where their time goes.

``python -m tests.benchmarks.bench_store``
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from lighten import v1 as pb
from lighten_service.jobs.ports import JobStore
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.store import open_store
from lighten_service.telemetry.metrics import Metrics

CREATES = 5_000
UPDATES = 10_000
IN_FLIGHT = 64


class Wall:
    now = staticmethod(time.time)


async def measure(what: str, number: int, call: Callable[[int], Awaitable[object]]) -> None:
    """Print rate and latencies of ``number`` calls, ``IN_FLIGHT`` at a time."""
    numbers, seconds = iter(range(number)), list[float]()

    async def caller() -> None:
        for index in numbers:
            began = time.perf_counter()
            await call(index)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    rate = number / (time.perf_counter() - began)
    seconds.sort()
    median, p99 = (1e3 * seconds[int(share * number)] for share in (0.5, 0.99))
    print(f"{what}: {rate:,.0f}/s, median {median:.1f} ms, p99 {p99:.1f} ms")


def new_job(index: int) -> JobRecord:
    job_id = f"{index:026d}"
    job = pb.Job(
        name=f"projects/default/jobs/{job_id}",
        state=pb.JOB_STATE_QUEUED,
        labels={"team": "vision"},
        techniques=["fold_batch_norms", "calibrate"],
    )
    job.create_time.GetCurrentTime()
    return JobRecord("default", job_id, job, request_id=f"request-{index}")


async def bench(store: JobStore) -> None:
    queued = pb.JobEvent(state_changed=pb.StateChanged(to=pb.JOB_STATE_QUEUED))
    progress = pb.JobEvent(progress=pb.Progress(done=1, total=100, unit="batches"))

    async def create(index: int) -> None:
        await store.create(new_job(index), [queued], max_queued=CREATES)

    async def update(index: int) -> None:
        job_id = f"{index % 100:026d}"
        await store.update(job_id, lambda record: Change(record, [progress]))

    await measure("durable creates", CREATES, create)
    await measure("durable updates of 100 jobs, one event each", UPDATES, update)


async def main() -> None:
    registry = CollectorRegistry()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder)}/lighten.db"
        store = await open_store(url, clock=Wall(), metrics=Metrics(registry))
        began = time.perf_counter()
        await bench(store)
        elapsed = time.perf_counter() - began
        await store.close()
    commits, in_transaction = (
        registry.get_sample_value(f"lighten_store_commit_seconds_{part}") or 0
        for part in ("count", "sum")
    )
    print(
        f"{commits:,.0f} transactions of {(CREATES + UPDATES) / commits:.0f} requests; the writer "
        f"is in a transaction {100 * in_transaction / elapsed:.0f} % of the time"
    )


if __name__ == "__main__":
    asyncio.run(main())
