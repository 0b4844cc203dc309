"""Figures of the control plane: ``python tests/benchmarks/bench_control_plane.py``.

* ``create``: durable CreateJob (SQLite, synchronous FULL) against a no-op RPC, the health Check, on
  the same ``lighten-server`` with its default limits, through the same interceptors, 64 in flight
  from one client process; and the same CreateJob with ``validate_only``, which is everything but
  the store. The three take turns, so that all meet the same machine. One worker holds the only slot
  and is stopped: its jobs would take the processors.
* ``watch``: 1,000 watchers of one live job at 10 events a second, all in one client process, which
  the lag includes.
* ``start``: from the start of ``lighten-server`` to an answer to its health check; ``import
  lighten``.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lighten_service.jobs.ports import LaunchRequest  # noqa: E402
from tests.support.scripted_workers import ScriptedWorker  # noqa: E402
from tests.support.specs import onnx_spec  # noqa: E402

PARENT = "projects/default"
IN_FLIGHT = 64
WATCHERS = 1000
WATCH_CHANNELS = 8
EVENTS_PER_SECOND = 10
CALLS = 1500
WARM_CALLS = 500

Call = Callable[[], Awaitable[object]]


def write_inputs(folder: Path) -> None:
    for name in ("model.onnx", "calibration.npz"):
        (folder / name).write_bytes(b"some bytes")


class PlayedServer:
    """A control plane whose workers the benchmark plays, as a process of its own."""

    def __init__(self, folder: Path, slots: int) -> None:
        write_inputs(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.control_plane_server", folder, str(slots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.target: str = self.read()["grpc"]
        self.usage = psutil.Process(self.process.pid)

    def read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def launch(self) -> LaunchRequest:
        name, launch, token = self.read()
        return LaunchRequest("default", name[-26:], name, launch, token, pb.Resources())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


@contextmanager
def serving(slots: int) -> Iterator[tuple[PlayedServer, pb.JobSpec]]:
    with tempfile.TemporaryDirectory() as folder:
        server = PlayedServer(Path(folder), slots)
        try:
            yield server, onnx_spec(Path(folder).as_uri())
        finally:
            server.close()


@asynccontextmanager
async def channels(target: str, number: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    # An argument of its own for each, or they would share one connection.
    opened = [
        grpc.aio.insecure_channel(target, options=(("lighten.benchmark", index),))
        for index in range(number)
    ]
    try:
        yield opened
    finally:
        for channel in opened:
            await channel.close()


@dataclass(frozen=True, slots=True)
class Round:
    """Some calls of one kind. Times in seconds."""

    rate: float
    times: list[float]
    server_cpu: float


async def measure(call: Call, number: int, server: psutil.Process) -> Round:
    """Make ``number`` calls, 64 in flight."""
    times: list[float] = []
    numbers = iter(range(number))

    async def one_after_another() -> None:
        for _ in numbers:
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)

    cpu = cpu_seconds(server)
    began = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
    took = time.perf_counter() - began
    return Round(number / took, times, (cpu_seconds(server) - cpu) / number)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


@contextmanager
def lighten_server(folder: Path, slots: int = 1) -> Iterator[tuple[psutil.Process, str]]:
    """Run the real server; yield its process, and its address once it is ready."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    ports = [f"--{name}=0" for name in ("port", "http-port", "metrics-port")]
    files = [f"--data-dir={folder / 'data'}", f"--ready-file={ready}"]
    settings = {"EXECUTOR__WARM_WORKERS": 0, "EXECUTOR__CPU_SLOTS": slots, "FILE_ROOTS": folder}
    process = psutil.Popen(
        [sys.executable, "-m", "lighten_service.server", *ports, *files],
        env=os.environ | {f"LIGHTEN_{name}": str(value) for name, value in settings.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not ready.exists():
            assert process.poll() is None, "the server does not start"
            time.sleep(0.002)
        yield process, json.loads(ready.read_text())["grpc"]
    finally:
        process.terminate()
        process.wait(30)


@asynccontextmanager
async def held_slot(server: psutil.Process, create: Call) -> AsyncIterator[None]:
    """Fill the only slot with a worker that is stopped."""
    await create()
    while not (workers := server.children(recursive=True)):
        await asyncio.sleep(0.01)
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()


async def bench_create(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        with lighten_server(folder) as (server, target):
            async with channels(target, 1) as (channel,):
                calls = calls_of(channel, onnx_spec(folder.as_uri()))
                async with held_slot(server, calls["CreateJob"]):
                    for call in calls.values():
                        await measure(call, WARM_CALLS, server)
                    done = [
                        {name: await measure(call, CALLS, server) for name, call in calls.items()}
                        for _ in range(rounds)
                    ]
    print_create(done)


def calls_of(channel: grpc.aio.Channel, spec: pb.JobSpec) -> dict[str, Call]:
    api: Any = OptimizationServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    nothing = health_pb2.HealthCheckRequest()
    job = pb.CreateJobRequest(parent=PARENT, spec=spec)
    check = pb.CreateJobRequest(parent=PARENT, spec=spec, validate_only=True)
    return {
        "no-op": lambda: health.Check(nothing),
        "validate_only": lambda: api.CreateJob(check),
        "CreateJob": lambda: api.CreateJob(job),
    }


def print_create(rounds: list[dict[str, Round]]) -> None:
    middle: dict[str, float] = {}
    for name in rounds[0]:
        same = [one[name] for one in rounds]
        times = [seconds for one in same for seconds in one.times]
        middle[name] = statistics.median(one.rate for one in same)
        cpu = statistics.median(one.server_cpu for one in same)
        print(
            f"create  {name:13} {middle[name]:5.0f} /s  p50 {percentile(times, 50) * 1e3:6.1f} ms"
            f"  p99 {percentile(times, 99) * 1e3:6.1f} ms  server CPU {cpu * 1e6:5.0f} us a call"
        )
    noop, checks, whole = (1 / rate for rate in middle.values())
    ratios = [one["CreateJob"].rate / one["no-op"].rate for one in rounds]
    print(
        f"create  CreateJob / no-op = {statistics.median(ratios):.2f} (rounds "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; target 0.40, and p99 below 100 ms); of "
        f"its time: RPC {noop / whole:.0%}, checks and references {(checks - noop) / whole:.0%}, "
        f"store and events {(whole - checks) / whole:.0%}"
    )


async def bench_watch(seconds: float) -> None:
    with serving(slots=1) as (server, spec):
        async with channels(server.target, WATCH_CHANNELS + 1) as opened:
            main: Any = OptimizationServiceStub(opened[0])
            job = (await main.CreateJob(pb.CreateJobRequest(parent=PARENT, spec=spec))).job
            worker = ScriptedWorker(opened[0], await asyncio.to_thread(server.launch))
            await worker.attach()
            ready = asyncio.Semaphore(0)
            lags: list[float] = []

            async def watch(stub: Any) -> int:
                expected = 0
                async for response in stub.WatchJob(pb.WatchJobRequest(name=job.name)):
                    if response.HasField("snapshot"):
                        ready.release()
                        continue
                    expected += 1
                    assert response.event.sequence == expected, "an event is missing or repeated"
                    if response.event.HasField("log"):
                        lags.append(time.time() - response.event.time.ToNanoseconds() / 1e9)
                return expected

            stubs = [OptimizationServiceStub(channel) for channel in opened[1:]]
            tasks = [
                asyncio.create_task(watch(stubs[index % len(stubs)])) for index in range(WATCHERS)
            ]
            for _ in range(WATCHERS):
                await ready.acquire()
            for number in range(int(seconds * EVENTS_PER_SECOND)):
                worker.tell(log=pb.LogLine(level=pb.LOG_LEVEL_INFO, message=f"line {number}"))
                await asyncio.sleep(1 / EVENTS_PER_SECOND)
            await worker.settle()
            memory = server.usage.memory_info().rss
            await worker.fail(pb.JobError(reason="DONE", kind=pb.ERROR_KIND_USER))
            counts = await asyncio.gather(*tasks)
            assert len(set(counts)) == 1, "watchers saw different numbers of events"
            print(
                f"watch   {WATCHERS} watchers, {len(lags)} deliveries at {EVENTS_PER_SECOND} "
                f"events/s: lag p50 {percentile(lags, 50):.3f} s, p99 {percentile(lags, 99):.3f} s "
                f"(target 1), worst {max(lags):.3f} s; server RSS {memory / 1e6:.0f} MB (target "
                "200); every watcher got every event once"
            )


def bench_start(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        times = sorted(time_to_health(Path(name)) for _ in range(rounds))
    imports = sorted(time_to_import() for _ in range(rounds))
    print(
        f"start   lighten-server to health: best {times[0]:.2f} s, median "
        f"{statistics.median(times):.2f} s (target 1.5); python -c 'import lighten': best "
        f"{imports[0]:.3f} s, median {statistics.median(imports):.3f} s (target 0.3)"
    )


def time_to_health(folder: Path) -> float:
    began = time.perf_counter()
    with lighten_server(folder) as (_, target), grpc.insecure_channel(target) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return time.perf_counter() - began


def time_to_import() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lighten"], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="create|watch|start")
    parser.add_argument("--rounds", type=int, default=5, help="of create and start")
    parser.add_argument("--seconds", type=float, default=5.0, help="of watch")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    wanted = options.only or ["create", "watch", "start"]
    if "create" in wanted:
        asyncio.run(bench_create(options.rounds))
    if "watch" in wanted:
        asyncio.run(bench_watch(options.seconds))
    if "start" in wanted:
        bench_start(options.rounds)


if __name__ == "__main__":
    main()
