"""The watches of one server, and what they need."""

import asyncio
import logging
from typing import Any

from lighten_service.executors.kubernetes import naming, sinks
from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.executors.kubernetes.availability import Availability, Backoff
from lighten_service.executors.kubernetes.options import KubernetesOptions
from lighten_service.executors.kubernetes.reflector import Collection, Reflector, Sink
from lighten_service.executors.kubernetes.view import View
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics

_log = logging.getLogger(__name__)

_KUEUE = "kueue.x-k8s.io"
_NOT_FOUND = 404


class Following:
    """Follows Jobs and pods, the events of pods that cannot be made, and Kueue's workloads."""

    def __init__(
        self,
        api: Api,
        view: View,
        options: KubernetesOptions,
        availability: Availability,
        metrics: KubernetesMetrics,
    ) -> None:
        self._api = api
        self._options = options
        self._availability = availability
        self._metrics = metrics
        ours = {"labelSelector": naming.selector(options.instance)}
        refused = {"fieldSelector": "involvedObject.kind=Job,reason=FailedCreate"}
        self._job_sink = sinks.Jobs(view, options.instance)
        self._workload_sink = sinks.Workloads(view)
        self._jobs = self._reflector(Collection("jobs", ours), self._job_sink)
        self._pod_sink = sinks.Pods(view)
        self._pods = self._reflector(Collection("pods", ours), self._pod_sink)
        self._refusals = self._reflector(
            Collection("events", refused, vital=False), sinks.Refusals(view)
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; the current event loop does the work."""
        loops = [self._jobs.run(), self._pods.run(), self._explain()]
        self._tasks = [asyncio.create_task(loop, name="kubernetes-watch") for loop in loops]
        for task in self._tasks:
            task.add_done_callback(_died)

    async def until_synced(self) -> None:
        """Return once every Job and every pod was read."""
        await self._jobs.synced.wait()
        await self._pods.synced.wait()

    def put_job(self, item: dict[str, Any]) -> None:
        """Take up a Job that an answer brought before the watch does."""
        self._job_sink.put(item)

    def put_pod(self, item: dict[str, Any]) -> None:
        """Take up a pod that was read before the watch shows it."""
        self._pod_sink.put(item)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _explain(self) -> None:
        """Follow what only explains why Jobs wait, once they are known."""
        await self.until_synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._refusals.run())
            if self._options.queue:
                group.create_task(self._follow_queue())

    async def _follow_queue(self) -> None:
        path = await self._find_kueue()
        if path:
            # Every workload of a Job has the label; there is none that says whose Job it is.
            collection = Collection(
                "workloads", {"labelSelector": naming.QUEUED_JOB_LABEL}, group=path, vital=False
            )
            await self._reflector(collection, self._workload_sink).run()

    async def _find_kueue(self) -> str:
        """Return the path of the version that the server prefers; empty without Kueue."""
        backoff = Backoff()
        while True:
            try:
                found = await self._api.discover(_KUEUE)
            except ApiUnreachable as error:
                self._availability.failed(error)
            except ApiError as error:
                if error.code == _NOT_FOUND:
                    _log.error(
                        "the queue %s is configured and the cluster has no Kueue: no job will "
                        "start",
                        self._options.queue,
                    )
                    return ""
                _log.warning("cannot look for Kueue: %s", error)
            else:
                return f"/apis/{found['preferredVersion']['groupVersion']}"
            await asyncio.sleep(backoff.next())

    def _reflector(self, collection: Collection, sink: Sink) -> Reflector:
        return Reflector(self._api, collection, sink, self._availability, self._metrics)


def _died(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a watch of the cluster died", exc_info=error)
