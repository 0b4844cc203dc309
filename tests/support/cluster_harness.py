"""The contract suite's harness over pods of a real node; they run what is on this machine."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry

from lighten_service.executors.kubernetes import (
    KubernetesExecutor,
    KubernetesOptions,
    Limits,
    Timeouts,
)
from lighten_service.jobs.ports import Executor, LaunchRef
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.node import EMPTY_IMAGE
from tests.support.cluster.pods import machine_template
from tests.support.executor_harness import SECONDS, Harness

_WORKER = Path(__file__).with_name("plain_worker.py")


class ClusterHarness(Harness):
    """Workers are pods; their processes are seen from this machine all the same."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        template = machine_template(command=(sys.executable, "-P", str(_WORKER)))
        # Process 1 of a pod cannot be killed by a signal of its own.
        template["spec"]["shareProcessNamespace"] = True
        self._options = KubernetesOptions(
            namespace=kubectl.namespace,
            server="127.0.0.1:1",
            image=EMPTY_IMAGE,
            kubeconfig=kubectl.kubeconfig,
            pod_template=template,
            cpus=0.2,
            limits=Limits(gpus=1, memory_bytes=1 << 40),
            timeouts=Timeouts(termination_grace=20),
        )
        super().__init__()

    def make(self) -> Executor:
        return KubernetesExecutor(self._options, KubernetesMetrics(CollectorRegistry()))

    async def instance(self, ref: LaunchRef) -> str:
        selector = f"lighten.dev/job={ref.job_id},lighten.dev/launch={ref.launch}"
        async with asyncio.timeout(SECONDS):
            while True:
                pods = await asyncio.to_thread(self._kubectl.list, "pods", selector)
                for pod in pods:
                    name = pod["metadata"]["name"]
                    with suppress(Exception):
                        if "working" in await asyncio.to_thread(self._kubectl, "logs", name):
                            return str(pod["metadata"]["uid"])
                await asyncio.sleep(0.1)

    def pid(self, instance: str) -> int:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("LIGHTEN_INSTANCE_ID") == instance:
                    return process.pid
        raise LookupError(f"no process of pod {instance}")

    async def crash_server(self) -> None:
        await self.executor.close()


@asynccontextmanager
async def cluster_harness(kubectl: Kubectl) -> AsyncIterator[ClusterHarness]:
    """Yield a harness with its executor open."""
    harness = ClusterHarness(kubectl)
    await harness.executor.open(harness.listen)
    try:
        yield harness
    finally:
        await harness.executor.close()
