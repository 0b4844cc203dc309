"""Why a pod ended, as the domain names it."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from lighten_service.executors.kubernetes import quantities
from lighten_service.executors.kubernetes.facts import PodFacts, Said, Terminated
from lighten_service.jobs.ports import LaunchEnd
from lighten_service.jobs.ticket import EXIT_STOPPED

# Of the condition DisruptionTarget.
_DISRUPTIONS = {
    "EvictionByEvictionAPI": LaunchEnd.EVICTED,
    "PreemptionByScheduler": LaunchEnd.PREEMPTED,
    "DeletionByTaintManager": LaunchEnd.EVICTED,
    "TerminationByKubelet": LaunchEnd.EVICTED,
    "DeletionByPodGC": LaunchEnd.NODE_LOST,
}
_DISK_WORDS = ("ephemeral", "emptydir")
_QUOTED_LIMIT = re.compile(r'limit "([^"]+)"')
_OVER_LIMIT_WORDS = ("exceeds", "exceeded")
# The runtime could not start what the container is configured to run.
_START_ERRORS = ("StartError", "ContainerCannotRun")
_SIGNAL_BASE = 128
_STOPPED_CODES = (EXIT_STOPPED, _SIGNAL_BASE + signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class PodEnd:
    """Why a pod ended. ``figures``: for programs, with the keys that every executor uses."""

    end: LaunchEnd
    detail: str
    figures: Mapping[str, str]


def pod_end(pod: PodFacts, *, suspended: bool) -> PodEnd:
    """Return why a pod ended, or was deleted before it did.

    ``suspended``: its Job was, while the pod was there.
    """
    if pod.disruption is not None:
        return _disrupted(pod, pod.disruption)
    if pod.said is not None and pod.said.reason == "Evicted":
        return _evicted(pod.said)
    if pod.said is not None and pod.said.reason == "DeadlineExceeded":
        return PodEnd(LaunchEnd.OVERDUE, "the pod ran longer than its deadline", {})
    if suspended:
        return PodEnd(
            LaunchEnd.SUSPENDED, "the Job was suspended to let others run", _code(pod.terminated)
        )
    if pod.terminated is not None:
        return _terminated(pod, pod.terminated)
    if pod.said is not None and pod.over:
        # The kubelet turned it away, for example as its device was taken.
        return PodEnd(LaunchEnd.DISRUPTED, f"the node refused the pod: {pod.said}", {})
    if pod.deleting_grace is not None or not pod.over:
        return PodEnd(LaunchEnd.DELETED, "the pod was deleted", {})
    return PodEnd(LaunchEnd.CRASHED, "the pod failed before the worker started", {})


def _disrupted(pod: PodFacts, why: Said) -> PodEnd:
    if why.reason == "TerminationByKubelet" and pod.said is not None:
        return _evicted(pod.said)
    end = _DISRUPTIONS.get(why.reason, LaunchEnd.DISRUPTED)
    return PodEnd(end, str(why), {"cause": why.reason})


def _evicted(why: Said) -> PodEnd:
    text = why.message.lower()
    over = any(word in text for word in _OVER_LIMIT_WORDS)
    if over and any(word in text for word in _DISK_WORDS):
        return PodEnd(LaunchEnd.OUT_OF_DISK, why.message, _limit(why.message))
    return PodEnd(LaunchEnd.EVICTED, str(why), {"cause": why.reason})


def _limit(message: str) -> dict[str, str]:
    """Return the figure that the kubelet names, as bytes."""
    found = _QUOTED_LIMIT.search(message)
    try:
        return {"limit_bytes": str(int(quantities.parse(found[1])))} if found else {}
    except ValueError:
        return {}


def _terminated(pod: PodFacts, ended: Terminated) -> PodEnd:
    if ended.reason == "OOMKilled":
        limit = pod.memory_bytes
        return PodEnd(
            LaunchEnd.OUT_OF_MEMORY,
            f"the worker was killed at its limit of {limit} bytes of memory",
            {"limit_bytes": str(limit)},
        )
    if ended.reason in _START_ERRORS:
        return PodEnd(LaunchEnd.CONFIG_INVALID, ended.message or ended.reason, {})
    code = ended.exit_code
    if code in _STOPPED_CODES:
        if pod.deleting_grace is not None:
            return PodEnd(LaunchEnd.DELETED, "the pod was deleted", _code(ended))
        return PodEnd(LaunchEnd.DISRUPTED, "the worker was asked to end", _code(ended))
    if code > _SIGNAL_BASE and (name := _signal_name(code - _SIGNAL_BASE)):
        return PodEnd(LaunchEnd.CRASHED, f"the worker was ended by {name}", {"signal": name})
    return PodEnd(LaunchEnd.EXITED, f"the worker ended with exit code {code}", _code(ended))


def _code(ended: Terminated | None) -> dict[str, str]:
    return {"exit_code": str(ended.exit_code)} if ended is not None else {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
