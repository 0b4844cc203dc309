"""The few facts that are kept of an object of the API: a pod has 10 KB, what matters 500 bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from lighten_service.executors.kubernetes import naming, quantities

Json = Mapping[str, Any]

_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True)
class Said:
    """A reason for programs, and a message for a person."""

    reason: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.message else self.reason


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A Job. ``failed``, ``complete``: the condition, once it is true."""

    uid: str
    name: str
    suspended: bool
    deleting: bool
    # No pod will come any more, though one may still end: FailureTarget, SuccessCriteriaMet.
    ending: bool
    complete: bool
    failed: Said | None


@dataclass(frozen=True, slots=True)
class Terminated:
    """How the worker's container ended."""

    exit_code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod."""

    uid: str
    name: str
    created: str
    bound: bool
    # Succeeded or Failed.
    over: bool
    # Seconds that it may take to end; None while nobody has asked for its end.
    deleting_grace: int | None
    # Of the pod itself, for example Evicted.
    said: Said | None
    # Why it was taken away: condition DisruptionTarget.
    disruption: Said | None
    # Why it has no node: condition PodScheduled.
    unscheduled: Said | None
    # Why a container cannot start.
    waiting: Said | None
    running: bool
    terminated: Terminated | None
    memory_bytes: int


def job_facts(item: Json) -> JobFacts:
    """Read a Job."""
    metadata, conditions = item["metadata"], _true_conditions(item)
    return JobFacts(
        uid=metadata["uid"],
        name=metadata["name"],
        suspended=bool(item["spec"].get("suspend")),
        deleting="deletionTimestamp" in metadata,
        ending="FailureTarget" in conditions or "SuccessCriteriaMet" in conditions,
        complete="Complete" in conditions,
        failed=conditions.get("Failed"),
    )


def pod_facts(item: Json) -> PodFacts:
    """Read a pod."""
    metadata, status = item["metadata"], item.get("status") or {}
    spec = item.get("spec") or {}
    worker = _worker_state(status)
    ended = worker.get("terminated")
    return PodFacts(
        uid=metadata["uid"],
        name=metadata["name"],
        created=metadata.get("creationTimestamp") or "",
        bound=bool(spec.get("nodeName")),
        over=status.get("phase") in ("Succeeded", "Failed"),
        deleting_grace=(
            int(metadata.get("deletionGracePeriodSeconds") or 0)
            if "deletionTimestamp" in metadata
            else None
        ),
        said=_said(status) if status.get("reason") else None,
        disruption=_true_conditions(item).get("DisruptionTarget"),
        unscheduled=_unscheduled(status),
        waiting=next(_waiting(status), None),
        running="running" in worker,
        terminated=(
            Terminated(
                int(ended.get("exitCode", 0)),
                intern(ended.get("reason") or ""),
                _short(ended.get("message")),
            )
            if ended
            else None
        ),
        memory_bytes=_memory(spec),
    )


def _true_conditions(item: Json) -> dict[str, Said]:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return {each["type"]: _said(each) for each in conditions if each.get("status") == "True"}


def _unscheduled(status: Json) -> Said | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("status") == "False":
            return _said(condition)
    return None


def _waiting(status: Json) -> Iterator[Said]:
    """Yield why containers wait, of the ones that are not simply being made."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            waiting = (container.get("state") or {}).get("waiting")
            if waiting and waiting.get("reason") not in (None, *_ORDINARY):
                yield _said(waiting)


_ORDINARY = ("ContainerCreating", "PodInitializing")


def _worker_state(status: Json) -> Json:
    for container in status.get("containerStatuses") or ():
        if container.get("name") == naming.WORKER:
            state: Json = container.get("state") or {}
            return state
    return {}


def _memory(spec: Json) -> int:
    for container in spec.get("containers") or ():
        if container.get("name") == naming.WORKER:
            limits = (container.get("resources") or {}).get("limits") or {}
            return int(quantities.parse(str(limits.get("memory", "0"))))
    return 0


def _said(item: Json) -> Said:
    # Thousands of pods say the same: one string for all.
    return Said(intern(item.get("reason") or ""), intern(_short(item.get("message"))))


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:_MAX_TEXT]
