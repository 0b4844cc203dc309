"""Workers as pods of a cluster: one Job for each launch, scheduled by Kubernetes and Kueue."""

import asyncio
import logging
import math
from collections.abc import Coroutine, Sequence
from time import monotonic

from lighten import v1 as pb
from lighten_service.executors.kubernetes import admission, naming
from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.executors.kubernetes.availability import Availability
from lighten_service.executors.kubernetes.connection import Connection
from lighten_service.executors.kubernetes.creation import Creator
from lighten_service.executors.kubernetes.following import Following
from lighten_service.executors.kubernetes.naming import LaunchKey
from lighten_service.executors.kubernetes.options import KubernetesOptions
from lighten_service.executors.kubernetes.publisher import Publisher
from lighten_service.executors.kubernetes.removals import Removals
from lighten_service.executors.kubernetes.tracking import Launch, Tracker
from lighten_service.jobs.errors import LaunchDelayed, LightenError, Unavailable
from lighten_service.jobs.ports import (
    LaunchEnd,
    LaunchListener,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics

_log = logging.getLogger(__name__)

# A worker that has said its last word ends by itself; it is given so many seconds.
_LEAVE_SECONDS = 2.0
_LEAVE_LOOK = 0.1
# Between two readings of a launch's pods for a worker that the watch has not shown yet.
_ASK_SECONDS = 1.0
_LAUNCHES_AT_ONCE = 8
# Between two countings of launches for the metrics.
_COUNT_SECONDS = 5.0


class KubernetesExecutor:
    """The ``Executor`` port over Jobs. State comes from watches; everything happens in one loop."""

    def __init__(self, options: KubernetesOptions, metrics: KubernetesMetrics) -> None:
        self._options = options
        self._metrics = metrics
        self._listener: LaunchListener | None = None
        self._connection = Connection(options.kubeconfig, options.context)
        self._api = Api(
            self._connection, options.namespace, metrics, timeout=options.timeouts.request
        )
        self._availability = Availability()
        self._creator = Creator(self._api, options, self._availability)
        self._removals = Removals(self._api, self._availability)
        self._publisher = Publisher(self._api, self._report)
        self._tracker = Tracker(options, self._publisher, self._removals)
        self._following = Following(
            self._api, self._tracker.view, options, self._availability, metrics
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, listener: LaunchListener) -> None:
        """Begin to follow the cluster. An API server that is away is waited for later.

        Raises:
            FailedPrecondition: KUBERNETES_CONFIG_INVALID; POD_INVALID, the API server refuses
                what the settings and the pod template make.
        """
        self._listener = listener
        await self._connection.open()
        try:
            await self._creator.rehearse()
        except LightenError:
            await self._connection.close()
            raise
        self._following.start()
        self._spawn(self._begin())
        self._spawn(self._count())

    async def adopt(self, launches: Sequence[LaunchRef]) -> None:
        """Take over what an earlier server process started, as soon as the cluster was read."""
        for ref in launches:
            self._tracker.track(ref)
        adopting = self._spawn(self._adopt_when_synced(launches))
        done, _ = await asyncio.wait({adopting}, timeout=self._options.timeouts.adoption)
        if not done:
            _log.warning("the cluster was not read yet: launches are adopted once it is")

    def admit(self, resources: pb.Resources) -> str | None:
        """Never a reason to wait: the scheduler knows better, and ``launch`` says when the API
        server is away.
        """
        admission.check(resources, self._options)
        return None

    @property
    def gpu_profiles(self) -> Sequence[pb.GpuProfile]:
        return [
            pb.GpuProfile(name=profile.name, description=profile.description)
            for profile in self._options.gpu_profiles
        ]

    @property
    def launches_at_once(self) -> int:
        """Each takes two requests, one after the other."""
        return _LAUNCHES_AT_ONCE

    async def launch(self, request: LaunchRequest) -> str:
        """Make the launch's Job and then its Secret, or find them; return the Job's UID.

        Raises:
            LaunchDelayed: KUBERNETES_UNAVAILABLE, QUOTA_EXCEEDED, or KUBERNETES_FORBIDDEN for a
                while.
            Unavailable: LAUNCH_STOPPED.
            LightenError: the cluster refuses it for good, see ``refusals``. A job that nobody
                but the operator can help is not kept waiting.
        """
        launch = self._tracker.track(LaunchRef(request.job_id, request.launch, ""))
        async with launch.making:
            if launch.stopping:
                raise Unavailable("LAUNCH_STOPPED", "the launch was stopped before it began")
            return await self._make(launch, request)

    async def holds(self, ref: LaunchRef, instance_id: str) -> bool:
        """Whether a pod of this UID belongs to the launch.

        Raises:
            Unavailable: KUBERNETES_UNAVAILABLE, it cannot be known now.
        """
        key = (ref.job_id, ref.launch)
        launch = self._tracker.get(key)
        if launch is None:
            return False
        pod = self._tracker.pod(key, instance_id)
        if pod is None:
            # A worker may be faster than the watch.
            if monotonic() - launch.asked_at < _ASK_SECONDS:
                raise Unavailable(
                    "KUBERNETES_UNAVAILABLE", "the pods of the launch were just read; say it again"
                )
            launch.asked_at = monotonic()
            await self._read_pods(key)
            pod = self._tracker.pod(key, instance_id)
        return pod is not None and not pod.over

    async def status(self, ref: LaunchRef) -> LaunchStatus:
        key = (ref.job_id, ref.launch)
        told = self._tracker.status(key)
        if told is not None:
            return told
        if self._tracker.get(key) is None:
            return LaunchStatus(LaunchState.UNKNOWN, detail="there is no such Job")
        trouble = self._availability.trouble or "it was not read yet"
        return LaunchStatus(
            LaunchState.UNSEEN, detail=f"the Kubernetes API is out of reach ({trouble})"
        )

    async def stop(self, ref: LaunchRef, *, grace_seconds: float) -> None:
        """Delete the launch's Job with its pod, in the background, until that is done."""
        key = (ref.job_id, ref.launch)
        launch = self._tracker.get(key)
        if launch is None or grace_seconds >= launch.stop_grace:
            return
        launch.stopping, launch.stop_grace = True, grace_seconds
        self._removals.run(naming.object_name(key), lambda: self._stop(key, launch, grace_seconds))

    async def close(self) -> None:
        """Stop watching. Pods carry on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tracker.close()
        await self._following.close()
        await self._removals.close()
        await self._publisher.close()
        await self._connection.close()

    async def _begin(self) -> None:
        await self._following.until_synced()
        self._tracker.begin()

    async def _adopt_when_synced(self, launches: Sequence[LaunchRef]) -> None:
        await self._begin()
        for ref in launches:
            self._adopt(ref)
        for key in self._tracker.view:
            seen = self._tracker.view.get(key)
            if seen is None or seen.job is None or self._tracker.get(key) is not None:
                continue
            # One that is over goes by itself, with its log until then.
            if not (seen.job.complete or seen.job.failed or seen.job.deleting):
                _log.warning("launch %d of %s has no live job: removing it", key[1], key[0])
                self._removals.start(seen.job.name, "Foreground")
        _log.info("launches adopted: %d", len(launches))

    def _adopt(self, ref: LaunchRef) -> None:
        key = (ref.job_id, ref.launch)
        seen = self._tracker.view.get(key)
        if seen is not None and seen.job is not None:
            self._tracker.look(key)
        elif ref.handle:
            # Whoever deleted it, or its TTL did: no fault of the job.
            detail = "its Job went while the server was away"
            self._tracker.end(key, LaunchStatus(LaunchState.ENDED, LaunchEnd.DELETED, detail))
        else:
            # It may never have happened: it is asked for again.
            self._tracker.forget(key)

    async def _make(self, launch: Launch, request: LaunchRequest) -> str:
        key = (request.job_id, request.launch)
        made = False
        try:
            job = await self._creator.job(request)
            made = True
            uid: str = job["metadata"]["uid"]
            launch.teller.ref = LaunchRef(request.job_id, request.launch, uid)
            self._following.put_job(job)
            await self._creator.secret(request, uid)
        except LaunchDelayed:
            raise
        except LightenError:
            if made:
                self._removals.start(naming.object_name(key), "Background")
            self._tracker.forget(key)
            raise
        return uid

    async def _stop(self, key: LaunchKey, launch: Launch, grace_seconds: float) -> None:
        await self._take_leave(key, launch, grace_seconds)
        if launch.over:
            if launch.newest is not None and launch.newest.end is LaunchEnd.DISRUPTED:
                # Cancelled: unlike that of a worker that failed, its pod tells nothing more.
                await self._removals.delete(naming.object_name(key), "Foreground")
            return
        pod = self._tracker.started_pod(key)
        ended = pod.facts.terminated if pod is not None else None
        if pod is not None and (ended is None or ended.exit_code):
            # Also of a worker that failed: its Job goes before it would say so.
            await self._publisher.read_log(launch.teller, pod.facts.name)
        # A Job that is being made would outlive a deletion that comes before it.
        async with launch.making:
            found = await self._removals.delete(naming.object_name(key), "Foreground")
        if not found:
            self._tracker.view.miss_job(key)
        elif (
            pod is not None
            and not pod.over
            and grace_seconds < self._options.timeouts.termination_grace
        ):
            await self._hurry(pod.facts.name, grace_seconds)

    async def _take_leave(self, key: LaunchKey, launch: Launch, grace_seconds: float) -> None:
        """Wait a moment for a worker that ends by itself."""
        until = monotonic() + min(grace_seconds, _LEAVE_SECONDS)
        while not launch.over and monotonic() < until:
            pod = self._tracker.started_pod(key)
            if pod is None or not pod.facts.running:
                return
            await asyncio.sleep(_LEAVE_LOOK)

    async def _hurry(self, pod: str, grace_seconds: float) -> None:
        """Shorten the grace period of a pod. 0 would leave its processes behind."""
        try:
            seconds = max(math.ceil(grace_seconds), 1)
            await self._api.delete("pods", pod, gracePeriodSeconds=seconds)
        except (ApiError, ApiUnreachable) as error:
            # It has its usual grace then.
            _log.info("the grace period of pod %s is not shortened: %s", pod, error)

    async def _read_pods(self, key: LaunchKey) -> None:
        selector = naming.selector(self._options.instance, key)
        try:
            found = await self._api.list("pods", labelSelector=selector)
        except (ApiError, ApiUnreachable) as error:
            raise Unavailable(
                "KUBERNETES_UNAVAILABLE", f"the pods of the launch cannot be read: {error}"
            ) from error
        for item in found.get("items") or ():
            self._following.put_pod(item)

    async def _report(self, ref: LaunchRef, status: LaunchStatus) -> None:
        self._tracker.remember(ref, status)
        if self._listener is not None:
            await self._listener(ref, status)

    async def _count(self) -> None:
        while True:
            self._metrics.launches_counted(self._tracker.counts())
            await asyncio.sleep(_COUNT_SECONDS)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the executor failed", exc_info=error)
