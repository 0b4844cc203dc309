"""Two thousand jobs for a few GPUs, on a real control plane with fake nodes."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighten import v1 as pb
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.kwok import FakeNodes
from tests.support.kubernetes_load import (
    Arrivals,
    Load,
    api_requests,
    cluster_server,
    gpu_spec,
    loading,
    resident_bytes,
)
from tests.support.lighten_server import LightenServer

JOBS = 2000
PROBES = 40
GPUS = 8
MIB = 1 << 20

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


@pytest.fixture
def server(
    control_plane: ControlPlane, kubectl: Kubectl, tmp_path: Path
) -> Iterator[LightenServer]:
    with FakeNodes(control_plane, 2, gpus=GPUS // 2):
        server = cluster_server(tmp_path, kubectl)
        server.start()
        yield server
        server.stop()
        # One request; kubectl would send one for each Job.
        jobs = f"/apis/batch/v1/namespaces/{kubectl.namespace}/jobs"
        Kubectl(kubectl.kubeconfig)("delete", f"--raw={jobs}?propagationPolicy=Background")


async def states(load: Load) -> Counter[str]:
    return Counter(
        pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower() for job in await load.jobs()
    )


async def test_thousands_of_jobs_wait_for_a_few_gpus(
    server: LightenServer, kubectl: Kubectl, tmp_path: Path
) -> None:
    with Arrivals(kubectl) as arrivals:
        async with loading(server, gpu_spec(tmp_path)) as load:
            await load.create()
            idle = resident_bytes(server)
            await load.fill(JOBS - 1)
            await load.delays(arrivals, list(load.begun), 400.0)
            await until_settled(load)
            assert await states(load) == {"starting": GPUS, "queued": JOBS - GPUS}
            await check_probes(load, arrivals)
            made = JOBS + PROBES
            assert sum(api_requests(server).values()) / made <= 6
            assert resident_bytes(server) - idle < 200 * MIB
        await check_restart(server, tmp_path, made)
    # None was made twice, and that of the cancelled job is gone.
    assert len(kubectl.list("jobs.batch")) == made - 1


async def check_probes(load: Load, arrivals: Arrivals) -> None:
    """New jobs come through while all the others are queued."""
    names = []
    for _ in range(PROBES):
        names.append(await load.create())
        await asyncio.sleep(0.1)
    delays = await load.delays(arrivals, names)
    assert statistics.median(delays) < 1.0
    assert max(delays) < 10.0


async def check_restart(server: LightenServer, folder: Path, made: int) -> None:
    """Another server process adopts all of them, and a freed GPU goes to the next job."""
    server.kill()
    began = time.monotonic()
    server.start()
    assert time.monotonic() - began < 30
    async with loading(server, gpu_spec(folder)) as load:
        assert await states(load) == {"starting": GPUS, "queued": made - GPUS}
        (first, *_) = await load.jobs("state = STARTING")
        await load.api.CancelJob(pb.CancelJobRequest(name=first.name))
        async with asyncio.timeout(60):
            while await states(load) != {
                "cancelled": 1,
                "starting": GPUS,
                "queued": made - GPUS - 1,
            }:
                await asyncio.sleep(0.5)
        jobs = await load.jobs()
        assert not any(job.crashes or job.disruptions for job in jobs)


async def until_settled(load: Load) -> None:
    """Wait until each job has a GPU or its scheduler's reason."""
    async with asyncio.timeout(300):
        while any(
            job.state == pb.JOB_STATE_QUEUED and "nvidia.com/gpu" not in job.state_reason
            for job in await load.jobs()
        ):
            await asyncio.sleep(1.0)
