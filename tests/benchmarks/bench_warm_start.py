"""From CreateJob to the first stage event: ``python -m tests.benchmarks.bench_warm_start``.

A real ``lighten-server`` with its workers and a caller that submits a job and watches it, all on
this machine. Measured at the caller: from before the call to the arrival of the event. Warm: an
idle worker has done its imports. Cold: there is no idle worker.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

import lighten
from lighten import v1 as pb
from lighten_service.worker.main import WAITING
from tests.support.lighten_server import LightenServer
from tests.support.models import convnet, write_samples

TARGET = 0.3
_WARM_SECONDS = 120.0


@contextmanager
def serving(folder: Path, *, warm_workers: int) -> Iterator[LightenServer]:
    """Run a server with one slot that may read ``folder``."""
    settings = {
        "LIGHTEN_FILE_ROOTS": str(folder),
        "LIGHTEN_EXECUTOR__CPU_SLOTS": "1",
        "LIGHTEN_EXECUTOR__WARM_WORKERS": str(warm_workers),
    }
    with LightenServer(folder / f"server-{warm_workers}", settings) as server:
        yield server


def small_job(folder: Path) -> dict[str, object]:
    """Write a small model and its data; return a spec."""
    onnx.save(convnet(), folder / "convnet.onnx")
    write_samples(folder / "calibration.npz", 8)
    return {
        "model": {"artifact": {"uri": (folder / "convnet.onnx").as_uri()}, "format": "ONNX"},
        "calibration": {
            "data": {"uri": (folder / "calibration.npz").as_uri()},
            "format": "NPZ",
        },
        "plan": {"steps": {"steps": [{"calibrate": {}}]}},
    }


def wait_for_warm_worker(server: LightenServer) -> None:
    """Return once an idle worker has done its imports; raise TimeoutError after two minutes."""
    deadline = time.monotonic() + _WARM_SECONDS
    while time.monotonic() < deadline:
        for log in (server.data_dir / "workers").glob("idle-*.log"):
            if WAITING in log.read_text(errors="replace"):
                return
        time.sleep(0.1)
    raise TimeoutError(f"no worker of {server.data_dir} was ready in {_WARM_SECONDS:.0f} s")


def seconds_to_first_stage(client: lighten.Client, spec: dict[str, object]) -> float:
    """Submit a job, watch it to its first stage, and cancel it; return the seconds."""
    began = time.perf_counter()
    job = client.submit(spec)
    for event in client.watch(job.name):
        if event.HasField("stage_started"):
            took = time.perf_counter() - began
            client.cancel(job.name)
            client.wait(job.name, timeout=60)
            return took
    raise RuntimeError(f"{job.name} ended as {pb.JobState.Name(client.get(job.name).state)}")


def bench(name: str, jobs: int, *, warm: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), warm_workers=int(warm)) as server,
        lighten.Client(server.target) as client,
    ):
        spec = small_job(Path(folder))
        times = []
        for _ in range(jobs):
            if warm:
                wait_for_warm_worker(server)
            times.append(seconds_to_first_stage(client, spec))
    listed = " ".join(f"{seconds:.3f}" for seconds in times)
    target = f" (target {TARGET})" if warm else ""
    print(f"{name}: median {statistics.median(times):.3f} s{target} of {listed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=7)
    options = parser.parse_args()
    print(f"warm start: {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    bench("warm worker", options.jobs, warm=True)
    bench("no idle worker", max(options.jobs // 2, 1), warm=False)


if __name__ == "__main__":
    main()
