"""What the API server has of ours, as the watches tell it: by launch, in few bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lighten_service.executors.kubernetes.facts import JobFacts, Said, job_facts, pod_facts
from lighten_service.executors.kubernetes.interpretation import SeenPod
from lighten_service.executors.kubernetes.naming import LaunchKey, key_of

# Pods of one launch that are kept: one that runs, and those before it.
_MAX_PODS = 4

Json = Mapping[str, Any]


@dataclass(slots=True)
class LaunchView:
    """One launch. ``pods``: oldest first."""

    job: JobFacts | None = None
    job_gone: bool = False
    # Of the list or watch that brought the Job last.
    job_round: int = 0
    # Since when the Job is known to be over, on the view's clock.
    over_since: float | None = None
    pods: list[SeenPod] = field(default_factory=list)
    refusal: Said | None = None
    queue: str = ""

    @property
    def empty(self) -> bool:
        return self.job is None and all(pod.gone for pod in self.pods)


class View:
    """Launches by key. ``changed`` is called after every change, with the key."""

    def __init__(
        self, instance: str, clock: Callable[[], float], changed: Callable[[LaunchKey], None]
    ) -> None:
        self._instance = instance
        self._clock = clock
        self._changed = changed
        self._launches: dict[LaunchKey, LaunchView] = {}
        # Launch of a Job, by its UID and its name.
        self._by_uid: dict[str, LaunchKey] = {}
        self._by_name: dict[str, LaunchKey] = {}

    def __iter__(self) -> Iterator[LaunchKey]:
        return iter(list(self._launches))

    def get(self, key: LaunchKey) -> LaunchView | None:
        return self._launches.get(key)

    def forget(self, key: LaunchKey) -> None:
        """Nobody asks for a launch any more: drop it once the API server has nothing of it."""
        launch = self._launches.get(key)
        if launch is not None and launch.empty:
            del self._launches[key]

    def put_job(self, item: Json, round_: int) -> None:
        """A Job is there, or changed."""
        key = key_of(item["metadata"], self._instance)
        if key is None:
            return
        launch = self._launches.setdefault(key, LaunchView())
        launch.job, launch.job_gone, launch.job_round = job_facts(item), False, round_
        if launch.job.suspended:
            # Kept: it may be admitted again before its pod has ended.
            launch.pods = [pod if pod.gone else replace(pod, suspended=True) for pod in launch.pods]
        over = launch.job.complete or launch.job.failed
        launch.over_since = _since(launch.over_since, over or None, self._clock())
        self._by_uid[launch.job.uid] = self._by_name[launch.job.name] = key
        self._changed(key)

    def drop_job(self, key: LaunchKey) -> None:
        """A Job is gone."""
        launch = self._launches.get(key)
        if launch is None or launch.job is None:
            return
        self._by_uid.pop(launch.job.uid, None)
        self._by_name.pop(launch.job.name, None)
        launch.job, launch.job_gone = None, True
        self._changed(key)

    def miss_job(self, key: LaunchKey) -> None:
        """The API server has no such Job, whether one was seen or not."""
        launch = self._launches.setdefault(key, LaunchView())
        if launch.job is not None:
            self.drop_job(key)
        elif not launch.job_gone:
            launch.job_gone = True
            self._changed(key)

    def put_pod(self, item: Json, *, gone: bool = False) -> LaunchKey | None:
        """A pod is there, changed, or was deleted; return its launch."""
        key = key_of(item["metadata"], self._instance)
        if key is None:
            return None
        facts, now = pod_facts(item), self._clock()
        launch = self._launches.setdefault(key, LaunchView())
        known = next((pod for pod in launch.pods if pod.facts.uid == facts.uid), None)
        seen = SeenPod(
            facts,
            # What was read one by one may be older than the watch.
            gone=gone or (known is not None and known.gone),
            suspended=known is not None and known.suspended,
            waiting_since=_since(known.waiting_since if known else None, facts.waiting, now),
            deleting_since=_since(
                known.deleting_since if known else None, facts.deleting_grace, now
            ),
        )
        others = [pod for pod in launch.pods if pod is not known]
        pods = sorted([*others, seen], key=lambda pod: (pod.facts.created, not pod.over))
        launch.pods = pods[-_MAX_PODS:]
        # A pod could be made, so nothing refuses it any more.
        launch.refusal = None
        self._changed(key)
        return key

    def keep_pods(self, uids: set[str]) -> None:
        """A list is whole: pods that it does not have are gone."""
        for key, launch in list(self._launches.items()):
            lost = [pod for pod in launch.pods if not pod.gone and pod.facts.uid not in uids]
            if lost:
                launch.pods = [
                    replace(pod, gone=True) if pod in lost else pod for pod in launch.pods
                ]
                self._changed(key)

    def refuse_pod(self, job_name: str, why: Said) -> None:
        """The Job controller cannot make a pod."""
        key = self._by_name.get(job_name)
        if key is not None and not self._launches[key].pods:
            self._launches[key].refusal = why
            self._changed(key)

    def explain_queue(self, job_uid: str, why: str) -> None:
        """Kueue says why a Job is not admitted; empty: it is."""
        key = self._by_uid.get(job_uid)
        if key is not None and self._launches[key].queue != why:
            self._launches[key].queue = why
            self._changed(key)


def _since(before: float | None, state: object, now: float) -> float | None:
    if state is None:
        return None
    return now if before is None else before
