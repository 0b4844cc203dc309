"""A Kubernetes executor with a listener that remembers, and a cluster without nodes to move."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from lighten import v1 as pb
from lighten_service.executors.kubernetes import (
    KubernetesExecutor,
    KubernetesOptions,
    Timeouts,
)
from lighten_service.jobs.ids import new_id
from lighten_service.jobs.ports import LaunchRef, LaunchRequest, LaunchState, LaunchStatus
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics
from tests.support.cluster.kubectl import Kubectl

T = TypeVar("T")
Json = dict[str, Any]

MIB = 1 << 20
SECONDS = 30.0
QUICK = Timeouts(
    termination_grace=5,
    image_pull=1.0,
    container_start=1.0,
    lost_pod=1.0,
    forbidden=0.0,
    request=10.0,
)
# Whatever nodes the cluster has, pods of these tests go where the test says.
_NOWHERE = {"spec": {"nodeSelector": {"lighten.test/node": "none"}}}


def options_for(kubectl: Kubectl, **changes: Any) -> KubernetesOptions:
    """Return options for a namespace, as its administrator."""
    options = KubernetesOptions(
        namespace=kubectl.namespace,
        server="127.0.0.1:1",
        image="lighten.test/worker:1",
        kubeconfig=kubectl.kubeconfig,
        pod_template=_NOWHERE,
        cpus=0.1,
        timeouts=QUICK,
    )
    return replace(options, **changes)


class Listener:
    """An executor that is open, and what it said."""

    def __init__(self, options: KubernetesOptions) -> None:
        self.options = options
        self.registry = CollectorRegistry()
        self.executor = KubernetesExecutor(options, KubernetesMetrics(self.registry))
        self.heard: list[tuple[LaunchRef, LaunchStatus]] = []

    async def __aenter__(self) -> "Listener":
        await self.executor.open(self._listen)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.close()

    def request(self, token: str = "", **resources: Any) -> LaunchRequest:
        job_id = new_id()
        defaults = {"memory_bytes": 64 * MIB, "scratch_bytes": 64 * MIB}
        return LaunchRequest(
            project="default",
            job_id=job_id,
            name=f"projects/default/jobs/{job_id}",
            launch=1,
            token=token,
            resources=pb.Resources(**{**defaults, **resources}),
        )

    async def start(self, request: LaunchRequest | None = None) -> LaunchRef:
        request = request or self.request()
        handle = await self.executor.launch(request)
        return LaunchRef(request.job_id, request.launch, handle)

    def said(self, ref: LaunchRef) -> list[LaunchStatus]:
        key = (ref.job_id, ref.launch)
        return [status for heard, status in self.heard if (heard.job_id, heard.launch) == key]

    async def hear(
        self, ref: LaunchRef, wanted: Callable[[LaunchStatus], bool], seconds: float = SECONDS
    ) -> LaunchStatus:
        """Wait until a status was said that is wanted."""
        try:
            return await until(
                lambda: next((status for status in self.said(ref) if wanted(status)), None), seconds
            )
        except TimeoutError:
            raise TimeoutError(f"never said; instead: {self.said(ref)}") from None

    async def end(self, ref: LaunchRef, seconds: float = SECONDS) -> LaunchStatus:
        ended = await self.hear(ref, lambda status: status.state is LaunchState.ENDED, seconds)
        assert await self.executor.status(ref) == ended
        return ended

    def requests(self, verb: str, resource: str) -> dict[str, float]:
        """Return the number of requests by HTTP code."""
        return {
            sample.labels["code"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "lighten_kubernetes_requests_total"
            and (sample.labels["verb"], sample.labels["resource"]) == (verb, resource)
        }

    async def _listen(self, ref: LaunchRef, status: LaunchStatus) -> None:
        self.heard.append((ref, status))


def job_name(ref: LaunchRef) -> str:
    return f"lighten-{ref.job_id}-{ref.launch}"


async def pod_of(kubectl: Kubectl, ref: LaunchRef, after: str = "") -> Json:
    """Wait for the pod of a launch, other than the one of the UID ``after``."""

    async def look() -> Json | None:
        selector = f"lighten.dev/job={ref.job_id},lighten.dev/launch={ref.launch}"
        pods = await asyncio.to_thread(kubectl.list, "pods", selector)
        return next((pod for pod in pods if pod["metadata"]["uid"] != after), None)

    async with asyncio.timeout(SECONDS):
        while (pod := await look()) is None:
            await asyncio.sleep(0.1)
        return pod


async def until(look: Callable[[], T | None], seconds: float = SECONDS) -> T:
    async with asyncio.timeout(seconds):
        while (seen := look()) is None or seen is False:
            await asyncio.sleep(0.02)
        return seen


class FakeKubelet:
    """Says of pods what a kubelet would: the cluster has no node."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    async def bind(self, pod: Json, node: str = "no-such-node") -> None:
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{self._kubectl.namespace}/pods/{name}/binding"
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await asyncio.to_thread(
            Kubectl(self._kubectl.kubeconfig),
            "create",
            f"--raw={path}",
            "--filename=-",
            stdin=json.dumps(body),
        )

    async def say(self, pod: Json, **status: Any) -> None:
        """Patch the status of a pod."""
        await asyncio.to_thread(
            self._kubectl.patch, "pod", pod["metadata"]["name"], {"status": status}, "status"
        )

    async def run(self, pod: Json) -> None:
        await self.bind(pod)
        await self.say(pod, phase="Running", containerStatuses=[_worker(running={})])

    async def fail(self, pod: Json, **terminated: Any) -> None:
        await self.say(pod, phase="Failed", containerStatuses=[_worker(terminated=terminated)])

    async def wait(self, pod: Json, reason: str, message: str = "") -> None:
        waiting = {"reason": reason, "message": message}
        await self.say(pod, phase="Pending", containerStatuses=[_worker(waiting=waiting)])

    async def remove(self, pod: Json) -> None:
        """Delete the object, as a kubelet does once the processes are gone."""
        with suppress(Exception):
            await asyncio.to_thread(
                self._kubectl,
                "delete",
                "pod",
                pod["metadata"]["name"],
                "--grace-period=0",
                "--force",
                "--wait=false",
            )


def _worker(**state: Json) -> Json:
    return {
        "name": "worker",
        "image": "lighten.test/worker:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
