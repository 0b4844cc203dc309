"""Thousands of jobs against a real API server: a server process on a cluster, and who came when."""

import asyncio
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import psutil

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten_service.executors.kubernetes.naming import object_name
from tests.support.cluster.build import program
from tests.support.cluster.kubectl import Kubectl
from tests.support.lighten_server import LightenServer
from tests.support.specs import onnx_spec

PARENT = "projects/default"
_SAMPLE = re.compile(r"^lighten_kubernetes_requests_total\{(.*)\} (\S+)$", re.MULTILINE)


def cluster_server(folder: Path, kubectl: Kubectl, **settings: str) -> LightenServer:
    """Return a server, not started, whose workers are pods of a namespace that is there."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "calibration.npz"):
        (files / name).write_bytes(b"some bytes")
    own = {
        "LIGHTEN_EXECUTOR__KIND": "kubernetes",
        "LIGHTEN_KUBERNETES__KUBECONFIG": str(kubectl.kubeconfig),
        "LIGHTEN_KUBERNETES__NAMESPACE": kubectl.namespace,
        "LIGHTEN_KUBERNETES__IMAGE": "lighten-worker",
        "LIGHTEN_FILE_ROOTS": str(files),
        # Pods of fake nodes run for ever and never attach.
        "LIGHTEN_START_TIMEOUT_SECONDS": "3600",
        "LIGHTEN_LOG_LEVEL": "warning",
        **settings,
    }
    return LightenServer(folder / "data", own, log=folder / "server.log")


def gpu_spec(folder: Path) -> pb.JobSpec:
    """Return the spec of a job that asks for one GPU."""
    spec = onnx_spec((folder / "files").as_uri())
    spec.resources.gpus = 1
    return spec


def resident_bytes(server: LightenServer) -> int:
    rss: int = psutil.Process(server.pid).memory_info().rss
    return rss


def api_requests(server: LightenServer) -> dict[str, float]:
    """Return the requests to the API server so far, by ``verb resource code``."""
    counted: dict[str, float] = {}
    for labels, value in _SAMPLE.findall(_metrics(server)):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counted[f"{named['verb']} {named['resource']} {named['code']}"] = float(value)
    return counted


def answer_seconds(server: LightenServer) -> tuple[float, float]:
    """Return the time that the API server took to make Jobs so far, and how many."""
    text = _metrics(server)
    total, count = (
        re.search(rf'_duration_seconds_{name}{{resource="jobs",verb="create"}} (\S+)', text)
        for name in ("sum", "count")
    )
    assert total, "no Job was made yet"
    assert count, "no Job was made yet"
    return float(total[1]), float(count[1])


def _metrics(server: LightenServer) -> str:
    with urllib.request.urlopen(server.metrics + "/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


class Arrivals:
    """When each Job of a namespace came to be at the API server (``time.perf_counter``)."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.seen: dict[str, float] = {}
        self._process = subprocess.Popen(
            [
                str(program("kubectl")),
                f"--kubeconfig={kubectl.kubeconfig}",
                f"--namespace={kubectl.namespace}",
                *("get", "jobs.batch", "--watch", "--output=jsonpath={.metadata.name}{'\\n'}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    async def of(self, job: str, seconds: float = 60.0) -> float:
        """Return when the first Job of a job came."""
        name = object_name((job.rpartition("/")[2], 1))
        async with asyncio.timeout(seconds):
            while name not in self.seen:
                await asyncio.sleep(0.002)
        return self.seen[name]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen.setdefault(line.strip(), time.perf_counter())


class Load:
    """A client that makes jobs of one spec.

    Attributes:
        begun: when CreateJob of each job was called (``time.perf_counter``), by its name.
    """

    def __init__(self, channel: grpc.aio.Channel, spec: pb.JobSpec) -> None:
        self.api: Any = OptimizationServiceStub(channel)
        self.begun: dict[str, float] = {}
        self._request = pb.CreateJobRequest(parent=PARENT, spec=spec)

    async def create(self) -> str:
        """Make one job and return its name."""
        began = time.perf_counter()
        name: str = (await self.api.CreateJob(self._request)).job.name
        self.begun[name] = began
        return name

    async def fill(self, number: int, *, in_flight: int = 16) -> None:
        """Make jobs as fast as the server takes them."""
        left = iter(range(number))

        async def one_after_another() -> None:
            for _ in left:
                await self.create()

        await asyncio.gather(*(one_after_another() for _ in range(in_flight)))

    async def delays(
        self, arrivals: Arrivals, names: list[str], longest: float = 60.0
    ) -> list[float]:
        """Return the seconds from CreateJob to the Job, waiting for those that are to come."""
        return [await arrivals.of(name, longest) - self.begun[name] for name in names]

    async def jobs(self, where: str = "") -> list[pb.Job]:
        """Return all jobs that a filter finds."""
        found: list[pb.Job] = []
        request = pb.ListJobsRequest(parent=PARENT, page_size=1000, filter=where)
        while True:
            page = await self.api.ListJobs(request)
            found += page.jobs
            request.page_token = page.next_page_token
            if not request.page_token:
                return found


@asynccontextmanager
async def loading(server: LightenServer, spec: pb.JobSpec) -> AsyncIterator[Load]:
    """Connect to a server that runs."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        yield Load(channel, spec)
