"""A real ``lighten-server`` whose workers are pods that do what a script says (scripted_worker)."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import yaml
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from tests.support.chart import VALUES, find, render
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.kubectl import Json, Kubectl
from tests.support.cluster.node import EMPTY_IMAGE
from tests.support.cluster.pods import machine_template
from tests.support.lighten_server import LightenServer
from tests.support.specs import onnx_spec

MIB = 1 << 20
SECONDS = 90.0
DEADLINE_MARGIN = 60
GRACE = 5
# Short waits, small workers.
_SETTINGS = {
    "EXECUTOR__KIND": "kubernetes",
    "KUBERNETES__IMAGE": EMPTY_IMAGE,
    "KUBERNETES__CPUS": "0.5",
    "KUBERNETES__SHM_BYTES": str(16 * MIB),
    "KUBERNETES__TERMINATION_GRACE_SECONDS": str(GRACE),
    "KUBERNETES__LOST_POD_SECONDS": "5",
    "KUBERNETES__IMAGE_PULL_TIMEOUT_SECONDS": "3",
    "KUBERNETES__DEADLINE_MARGIN_SECONDS": str(DEADLINE_MARGIN),
    "DEFAULTS__MEMORY_BYTES": str(256 * MIB),
    "DEFAULTS__SCRATCH_BYTES": str(64 * MIB),
    "CANCEL_GRACE_SECONDS": str(GRACE),
    "KILL_GRACE_SECONDS": "1",
    "RETRY_PAUSE_SECONDS": "0.1",
    "DRAIN_SECONDS": "1",
}
_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("scripted_worker.py")))


class PodServer:
    """A server with a namespace of its own, and what a caller and an operator do with it.

    Args:
        cluster: where its workers run.
        kubectl: an administrator in the namespace.
        folder: its data. ``folder / "shared"`` is there in its pods too.
        settings: over those of this file, without ``LIGHTEN_``.
    """

    def __init__(self, cluster: Cluster, kubectl: Kubectl, folder: Path, **settings: str) -> None:
        self.kubectl = kubectl
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._files = folder / "files"
        self._files.mkdir()
        for name in ("model.onnx", "calibration.npz"):
            (self._files / name).write_bytes(b"some bytes")
        template = folder / "pod.yaml"
        template.write_text(yaml.safe_dump(machine_template(_COMMAND, self.shared)))
        # The rights that an operator would give, and no more.
        rules = _rules(kueue="KUBERNETES__QUEUE" in settings)
        account = cluster.account(kubectl.namespace, "server", rules)
        own = {
            "KUBERNETES__NAMESPACE": kubectl.namespace,
            "KUBERNETES__KUBECONFIG": str(account),
            "KUBERNETES__POD_TEMPLATE": str(template),
            "FILE_ROOTS": str(self._files),
        }
        named = {**_SETTINGS, **own, **settings}
        self.process = LightenServer(
            folder / "data", {f"LIGHTEN_{name}": value for name, value in named.items()}
        )

    def start(self) -> Self:
        self.process.start()
        self._channel = grpc.insecure_channel(self.process.target)
        self.api: Any = OptimizationServiceStub(self._channel)
        return self

    def kill(self) -> None:
        """Kill -9 of the server; its pods carry on."""
        self._channel.close()
        self.process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()
        self.process.stop()
        # Shown with a test that fails.
        print(self.process.log.read_text(errors="replace")[-6000:])

    # --- as a caller ----------------------------------------------------------------------------

    def create(self, script: str, **resources: Any) -> str:
        """Submit a job whose worker does what a script says; return its name.

        Args:
            resources: of the spec; times in seconds.
        """
        for name in ("queue_timeout", "run_timeout"):
            if name in resources:
                resources[name] = Duration(seconds=resources[name])
        spec = onnx_spec(self._files.as_uri())
        spec.display_name = script
        spec.resources.CopyFrom(pb.Resources(**resources))
        request = pb.CreateJobRequest(parent="projects/default", spec=spec)
        created: pb.Job = self.api.CreateJob(request, wait_for_ready=True).job
        return created.name

    def job(self, name: str) -> pb.Job:
        found: pb.Job = self.api.GetJob(pb.GetJobRequest(name=name), wait_for_ready=True).job
        return found

    def cancel(self, name: str) -> None:
        self.api.CancelJob(pb.CancelJobRequest(name=name), wait_for_ready=True)

    def until(self, name: str, ready: Callable[[pb.Job], bool], seconds: float = SECONDS) -> pb.Job:
        """Wait until a job is as wanted. Raises TimeoutError with the job as it was last."""
        deadline = time.monotonic() + seconds
        while not ready(job := self.job(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds:.0f} s: {job}\n{self._objects()}")
            time.sleep(0.1)
        return job

    def running(self, name: str, attempt: int = 1) -> pb.Job:
        """Wait until an attempt runs."""
        return self.until(
            name, lambda job: (job.state, job.attempt) == (pb.JOB_STATE_RUNNING, attempt)
        )

    def end(self, name: str, seconds: float = SECONDS) -> pb.Job:
        """Wait until a job is over, however it ends."""
        return self.until(name, lambda job: job.HasField("end_time"), seconds)

    def losses(self, name: str) -> list[str]:
        """Return the reasons of the errors that a finished job met, in their order."""
        answers = self.api.WatchJob(pb.WatchJobRequest(name=name))
        changes = [answer.event.state_changed for answer in answers]
        return [change.error.reason for change in changes if change.error.reason]

    # --- as an operator -------------------------------------------------------------------------

    def kube_job(self, name: str, launch: int = 1) -> str:
        """Return the name of a launch's Job at the API server."""
        return f"lighten-{name.rsplit('/', 1)[1]}-{launch}"

    def pod(self, name: str, launch: int = 1, after: str = "") -> Json:
        """Wait for the pod of a launch, other than the one named ``after``."""
        selector = f"batch.kubernetes.io/job-name={self.kube_job(name, launch)}"
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for pod in self.kubectl.list("pods", selector):
                if pod["metadata"]["name"] != after:
                    return pod
            time.sleep(0.3)
        raise TimeoutError(f"no pod of {name}\n{self._objects()}")

    def _objects(self) -> str:
        return self.kubectl("get", "jobs,pods,events", "--output=wide")


def _rules(*, kueue: bool) -> list[Json]:
    """Return what the chart allows the server."""
    minimal = next(path for path in VALUES if path.name.startswith("minimal"))
    rules: list[Json] = find(render(minimal, values={"kueue": {"enabled": kueue}}), "Role")["rules"]
    return rules
