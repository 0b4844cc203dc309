"""Figures of the Kubernetes executor: ``python -m tests.benchmarks.bench_kubernetes``.

A real ``lighten-server`` on a real control plane, all on this machine, with fake nodes that have no
GPU: every job stays queued. The figures have the API server, etcd, the Job controller and the
scheduler beside them on the same processors.

* ``fill``: from nothing to so many jobs, 16 calls in flight.
* ``create``: from the call of CreateJob to the Job at the API server (as a watch of its own sees
  it), one at a time with pauses, while all those are queued.
* ``requests``: to the API server for each job, all of them counted, watches too.
* ``memory``: resident bytes over those of the idle server that has had its first job.
* ``adopt``: kill -9, then from the start of the process to the first answer, by when all launches
  are adopted; against the same with no jobs.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.cluster.access import make_namespace
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.kwok import FakeNodes
from tests.support.kubernetes_load import (
    Arrivals,
    Load,
    answer_seconds,
    api_requests,
    cluster_server,
    gpu_spec,
    loading,
    resident_bytes,
)
from tests.support.lighten_server import LightenServer

NAMESPACE = "lighten-benchmark"
NODES = 8
QUIET_SECONDS = 5.0
LONGEST_SETTLING = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--probes", type=int, default=200, help="of create")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two of them")
    options = parser.parse_args()
    with ControlPlane() as plane, tempfile.TemporaryDirectory() as name:
        kubectl = Kubectl(plane.kubeconfig)
        make_namespace(kubectl, NAMESPACE)
        with FakeNodes(plane, NODES, gpus=0):
            bench(Path(name), kubectl.within(NAMESPACE), options)


def bench(folder: Path, kubectl: Kubectl, options: argparse.Namespace) -> None:
    server = cluster_server(folder, kubectl)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    began = time.perf_counter()
    server.start()
    empty = time.perf_counter() - began
    try:
        asyncio.run(bench_load(server, folder, kubectl, options))
        server.kill()
        began = time.perf_counter()
        server.start()
        asyncio.run(report_adoption(server, folder, time.perf_counter() - began, empty))
    finally:
        server.stop()


async def bench_load(
    server: LightenServer, folder: Path, kubectl: Kubectl, options: argparse.Namespace
) -> None:
    with Arrivals(kubectl) as arrivals:
        async with loading(server, gpu_spec(folder)) as load:
            await arrivals.of(await load.create())
            await asyncio.sleep(QUIET_SECONDS)
            idle, before = resident_bytes(server), api_requests(server)
            await bench_fill(load, arrivals, options.jobs)
            await settled(load)
            print(
                f"memory   {(resident_bytes(server) - idle) / 1e6:.0f} MB over the "
                f"{idle / 1e6:.0f} MB of the idle server, {options.jobs} Jobs watched (target 60)",
                flush=True,
            )
            await bench_create(server, load, arrivals, options)
            await settled(load)
            report_requests(before, api_requests(server), len(load.begun) - 1)


async def bench_fill(load: Load, arrivals: Arrivals, number: int) -> None:
    known = set(load.begun)
    began = time.perf_counter()
    await load.fill(number)
    created = time.perf_counter() - began
    delays = await load.delays(arrivals, [name for name in load.begun if name not in known])
    took = time.perf_counter() - began
    print(
        f"fill     {number} jobs created in {created:.1f} s, their Jobs there after {took:.1f} s "
        f"({number / took:.0f} /s); CreateJob to Job {summary(delays)}",
        flush=True,
    )


async def bench_create(
    server: LightenServer, load: Load, arrivals: Arrivals, options: argparse.Namespace
) -> None:
    names, before = [], answer_seconds(server)
    for _ in range(options.probes):
        names.append(await load.create())
        await asyncio.sleep(options.pause)
    delays = await load.delays(arrivals, names)
    seconds, number = (new - old for new, old in zip(answer_seconds(server), before, strict=True))
    mean = seconds / number * 1e3
    print(
        f"create   CreateJob to Job, {options.jobs} queued, {len(delays)} calls: {summary(delays)} "
        f"(target median 100 ms, p99 1000 ms), of which the API server's own answer {mean:.0f} ms "
        f"on average; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


async def settled(load: Load) -> None:
    """Wait until every job has its scheduler's reason to wait, and a moment more."""
    async with asyncio.timeout(LONGEST_SETTLING):
        while any("nvidia.com/gpu" not in job.state_reason for job in await load.jobs()):
            await asyncio.sleep(1.0)
    await asyncio.sleep(QUIET_SECONDS)


def report_requests(before: dict[str, float], after: dict[str, float], jobs: int) -> None:
    made = {name: count - before.get(name, 0) for name, count in after.items()}
    kinds = ", ".join(f"{name} {count / jobs:.3f}" for name, count in sorted(made.items()) if count)
    print(
        f"requests {sum(made.values()) / jobs:.2f} for each of {jobs} jobs (target 6): {kinds}",
        flush=True,
    )


async def report_adoption(
    server: LightenServer, folder: Path, seconds: float, empty: float
) -> None:
    async with loading(server, gpu_spec(folder)) as load:
        jobs = await load.jobs()
        await asyncio.sleep(QUIET_SECONDS)
        lost = [job for job in await load.jobs() if job.crashes or job.disruptions]
    print(
        f"adopt    {len(jobs)} live Jobs: {seconds:.2f} s from the start of the server to its "
        f"first answer (target 5), of which {empty:.2f} s without any Job; {len(lost)} jobs "
        "disturbed"
    )


def summary(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return (
        f"median {statistics.median(seconds) * 1e3:.0f} ms, p99 {cuts[98] * 1e3:.0f} ms, "
        f"worst {max(seconds) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
