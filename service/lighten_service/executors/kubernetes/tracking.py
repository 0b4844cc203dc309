"""Launches of live jobs: what the cluster shows of each becomes what the domain is told."""

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from time import monotonic

from lighten_service.executors.kubernetes import naming
from lighten_service.executors.kubernetes.interpretation import (
    Seen,
    SeenPod,
    Verdict,
    carries_on,
    displaced,
    interpret,
)
from lighten_service.executors.kubernetes.naming import LaunchKey
from lighten_service.executors.kubernetes.options import KubernetesOptions
from lighten_service.executors.kubernetes.publisher import Publisher, Teller
from lighten_service.executors.kubernetes.removals import Removals
from lighten_service.executors.kubernetes.view import LaunchView, View
from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchState, LaunchStatus

# Ends that are remembered once a launch is not looked at any more.
_KEPT_ENDS = 256
# A timer may fire a moment early.
_LATE = 0.05


@dataclass(slots=True)
class Launch:
    """A launch that the domain has not been told the end of."""

    teller: Teller
    # What the domain was told last, or is about to be told.
    newest: LaunchStatus | None = None
    stopping: bool = False
    # The shortest time that a stop gave the worker, in seconds.
    stop_grace: float = float("inf")
    # Pods that are gone, of which the domain was told.
    told_gone: set[str] = field(default_factory=set)
    # Seconds on the monotonic clock, of the last reading of its pods.
    asked_at: float = float("-inf")
    timer: asyncio.TimerHandle | None = None
    over: bool = False
    # Held while its Job is made or deleted.
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class Tracker:
    """Launches by key."""

    def __init__(
        self, options: KubernetesOptions, publisher: Publisher, removals: Removals
    ) -> None:
        self.view = View(options.instance, monotonic, self.look)
        self._timeouts = options.timeouts
        self._publisher = publisher
        self._removals = removals
        self._launches: dict[LaunchKey, Launch] = {}
        self._ready = False
        self._ends: OrderedDict[LaunchKey, LaunchStatus] = OrderedDict()

    def begin(self) -> None:
        """The cluster was read: tell what it shows. Half of it would be misread. Again: nothing."""
        if not self._ready:
            self._ready = True
            for key in list(self._launches):
                self.look(key)

    def get(self, key: LaunchKey) -> Launch | None:
        return self._launches.get(key)

    def track(self, ref: LaunchRef) -> Launch:
        """Look after a launch from now on."""
        key = (ref.job_id, ref.launch)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches[key] = Launch(Teller(ref))
        return launch

    def forget(self, key: LaunchKey) -> None:
        """Look after a launch no more. No error when nobody does."""
        launch = self._launches.pop(key, None)
        if launch is not None and launch.timer is not None:
            launch.timer.cancel()
        self.view.forget(key)

    def status(self, key: LaunchKey) -> LaunchStatus | None:
        """Return what the domain was told last; None when that is nothing."""
        launch = self._launches.get(key)
        if launch is None:
            return self._ends.get(key)
        teller = launch.teller
        return teller.said or (teller.drafts[0][0] if teller.drafts else None)

    def counts(self) -> dict[str, int]:
        """Return the number of launches by ``LaunchState.value``."""
        told = (self.status(key) for key in self._launches)
        return dict(Counter(status.state.value for status in told if status is not None))

    def pod(self, key: LaunchKey, uid: str) -> SeenPod | None:
        """Return a pod of a launch."""
        seen = self.view.get(key)
        pods = seen.pods if seen is not None else ()
        return next((pod for pod in pods if pod.facts.uid == uid), None)

    def started_pod(self, key: LaunchKey) -> SeenPod | None:
        """Return the newest pod of a launch, if its worker has started and it is still there."""
        seen = self.view.get(key)
        newest = seen.pods[-1] if seen is not None and seen.pods else None
        if newest is None or newest.gone:
            return None
        facts = newest.facts
        return newest if facts.running or facts.terminated is not None else None

    def look(self, key: LaunchKey) -> None:
        """Something of a launch changed, or time did: tell what it means."""
        if not self._ready:
            return
        launch, seen_launch = self._launches.get(key), self.view.get(key)
        if launch is None:
            self.view.forget(key)
            return
        if launch.over or seen_launch is None:
            return
        if seen_launch.job is None and not seen_launch.job_gone:
            # Its pods were read before its Job.
            return
        seen = _seen(launch, seen_launch)
        self._tell_gone(launch, seen)
        verdict = interpret(seen, monotonic(), self._timeouts)
        self._tell(launch, verdict.status, seen)
        self._follow_up(key, launch, verdict)

    def end(self, key: LaunchKey, status: LaunchStatus) -> None:
        """A launch is over for a reason that its objects do not show."""
        launch = self._launches.get(key)
        if launch is not None and not launch.over:
            self._publisher.tell(launch.teller, status)
            self._close(launch)

    def remember(self, ref: LaunchRef, status: LaunchStatus) -> None:
        """The domain knows a status; an end is remembered, and the launch looked at no more."""
        if status.state not in (LaunchState.ENDED, LaunchState.UNKNOWN):
            return
        key = (ref.job_id, ref.launch)
        self._ends[key] = status
        while len(self._ends) > _KEPT_ENDS:
            self._ends.popitem(last=False)
        self.forget(key)

    def close(self) -> None:
        """Stop all timers."""
        for launch in self._launches.values():
            if launch.timer is not None:
                launch.timer.cancel()

    def _tell_gone(self, launch: Launch, seen: Seen) -> None:
        for pod in seen.pods:
            if pod.facts.uid not in launch.told_gone and carries_on(pod, seen):
                assert seen.job is not None  # noqa: S101  or it would not carry on
                launch.told_gone.add(pod.facts.uid)
                self._tell(launch, displaced(pod, seen.job), seen)

    def _tell(self, launch: Launch, status: LaunchStatus, seen: Seen) -> None:
        if status != launch.newest:
            launch.newest = status
            pod = _failed_pod(status, seen)
            if status.end is LaunchEnd.STOPPED:
                # What was read before its pod went.
                pod = next(reversed(launch.teller.logs), "")
            self._publisher.tell(launch.teller, status, pod)

    def _follow_up(self, key: LaunchKey, launch: Launch, verdict: Verdict) -> None:
        if launch.timer is not None:
            launch.timer.cancel()
            launch.timer = None
        if verdict.remove:
            self._removals.start(naming.object_name(key), "Background")
        if verdict.status.state is LaunchState.ENDED:
            self._close(launch)
        elif verdict.look_again is not None:
            loop = asyncio.get_running_loop()
            launch.timer = loop.call_later(verdict.look_again + _LATE, self.look, key)

    def _close(self, launch: Launch) -> None:
        launch.over = True
        if launch.timer is not None:
            launch.timer.cancel()
            launch.timer = None


def _seen(launch: Launch, view: LaunchView) -> Seen:
    return Seen(
        job=view.job,
        pods=view.pods,
        over_since=view.over_since,
        stopping=launch.stopping,
        job_gone=view.job_gone,
        told_gone=launch.told_gone,
        refusal=view.refusal,
        queue=view.queue,
    )


def _failed_pod(status: LaunchStatus, seen: Seen) -> str:
    """Return the name of the pod whose log tells why it ended; empty where none does."""
    if status.end is None:
        return ""
    for pod in seen.pods:
        ended = pod.facts.terminated
        if pod.facts.uid == status.instance_id and ended is not None and ended.exit_code:
            return pod.facts.name
    return ""
