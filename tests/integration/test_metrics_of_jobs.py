"""What a server counts of real jobs, read as Prometheus does."""

import asyncio
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lighten import v1 as pb
from lighten_service.jobs import reconcile
from tests.support.edge import Edge, running_edge

Series = dict[tuple[str, ...], float]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "COUNT_SECONDS", 0.05)


def read(url: str) -> Series:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until(edge: Edge, *series: str, value: float) -> Series:
    async with asyncio.timeout(10):
        while True:
            found = await asyncio.to_thread(read, edge.plane.addresses.metrics)
            if found.get(series) == value:
                return found
            await asyncio.sleep(0.05)


async def test_jobs_that_wait_are_counted_with_the_longest_wait(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as edge:
        for _ in range(2):
            await edge.create()
        found = await until(edge, "lighten_jobs", "queued", value=2)
        assert found["lighten_queue_oldest_wait_seconds",] > 0
        assert found["lighten_data_volume_free_bytes",] > 0
        (name, *_) = [job.name for job in (await jobs(edge))]
        await edge.api.CancelJob(pb.CancelJobRequest(name=name))
        found = await until(edge, "lighten_jobs", "cancelled", value=1)
        assert found["lighten_jobs", "queued"] == 1


async def jobs(edge: Edge) -> list[pb.Job]:
    listed = await edge.api.ListJobs(pb.ListJobsRequest(parent="projects/default"))
    return list(listed.jobs)


async def test_a_failure_is_counted_by_its_reason_and_kind(tmp_path: Path) -> None:
    async with running_edge(tmp_path, slots=1) as edge:
        await edge.create()
        worker = await edge.worker()
        error = pb.JobError(reason="INVALID_MODEL", kind=pb.ERROR_KIND_USER, message="no")
        await worker.fail(error)
        found = await until(edge, "lighten_jobs_failed_total", "INVALID_MODEL", "user", value=1)
        assert found["lighten_jobs_finished_total", "failed"] == 1
        assert found["lighten_worker_starts_total",] == 1
        await until(edge, "lighten_queue_oldest_wait_seconds", value=0)
