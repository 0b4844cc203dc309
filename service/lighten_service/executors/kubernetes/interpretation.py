"""What a launch's Job and pods mean: one status, and when to look again. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lighten_service.executors.kubernetes.ends import PodEnd, pod_end
from lighten_service.executors.kubernetes.facts import JobFacts, PodFacts, Said
from lighten_service.executors.kubernetes.options import Timeouts
from lighten_service.executors.kubernetes.refusals import is_denial
from lighten_service.jobs.ports import LaunchEnd, LaunchState, LaunchStatus

# Trying again cannot help: the name is no image.
_NO_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_PULL_ERRORS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"}
    | {"SignatureValidationFailed"}
)
# Seconds that the watch of pods may be behind the one of Jobs.
_POD_LAG = 5.0
# Before and after there is a pod: one reason, not an event for each step.
_SCHEDULING = "waiting for the cluster to schedule its pod"


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A pod, and since when (seconds on the executor's clock) it is as it is."""

    facts: PodFacts
    # Deleted at the API server: these were its last facts.
    gone: bool = False
    # Its Job was suspended while it ran.
    suspended: bool = False
    waiting_since: float | None = None
    deleting_since: float | None = None

    @property
    def over(self) -> bool:
        """Whether no worker runs in it any more."""
        return self.gone or self.facts.over


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that is known of a launch. ``pods``: oldest first."""

    job: JobFacts | None
    pods: Sequence[SeenPod] = ()
    # Since when the Job is known to be over.
    over_since: float | None = None
    # The server was asked to end the launch.
    stopping: bool = False
    # The Job was there and is not any more.
    job_gone: bool = False
    # UIDs of pods that ended, of which was told that the launch carries on without them.
    told_gone: Collection[str] = ()
    # Why the Job controller cannot make a pod.
    refusal: Said | None = None
    # Why Kueue does not admit the Job.
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Attributes:
    status: what to tell the domain.
    look_again: seconds from now after which time alone may change it.
    remove: the Job would go on for ever: delete it.
    """

    status: LaunchStatus
    look_again: float | None = None
    remove: bool = False


def interpret(seen: Seen, now: float, timeouts: Timeouts) -> Verdict:
    """Return what a launch is at a time."""
    job, current = seen.job, _current(seen)
    if seen.job_gone or job is None:
        return Verdict(_without_job(seen))
    leaves = seen.stopping and job.deleting
    if (job.failed is not None or job.complete) and not leaves:
        return _over(seen, job, now)
    if current is None:
        return _without_pod(seen, job)
    if current.deleting_since is not None:
        return _leaving(seen, current, now, timeouts)
    if current.waiting_since is not None and current.facts.waiting is not None:
        return _stuck(current, current.facts.waiting, now, timeouts)
    if current.facts.bound:
        return Verdict(LaunchStatus(LaunchState.PLACED, instance_id=current.facts.uid))
    why = current.facts.unscheduled
    detail = (why.message or why.reason) if why else _SCHEDULING
    return Verdict(LaunchStatus(LaunchState.WAITING, detail=detail))


def displaced(pod: SeenPod, job: JobFacts) -> LaunchStatus:
    """Return what to tell of a pod that is gone while its Job carries on."""
    end = pod_end(pod.facts, suspended=pod.suspended or job.suspended)
    return _status(LaunchState.WAITING, end, pod.facts.uid)


def carries_on(pod: SeenPod, seen: Seen) -> bool:
    """Whether the Job will make, or has made, another pod in place of this one."""
    job = seen.job
    if job is None or job.deleting or job.ending or job.failed is not None or job.complete:
        return False
    if seen.stopping or not pod.over:
        return False
    newest = seen.pods[-1] is pod
    return pod.facts.disruption is not None or job.suspended or not newest


def _current(seen: Seen) -> SeenPod | None:
    living = [pod for pod in seen.pods if not pod.over]
    return living[-1] if living else None


def _without_job(seen: Seen) -> LaunchStatus:
    if seen.stopping:
        return _stopped()
    if seen.job_gone:
        return LaunchStatus(LaunchState.ENDED, LaunchEnd.DELETED, "the Job was deleted")
    return LaunchStatus(LaunchState.UNKNOWN, detail="there is no such Job")


def _over(seen: Seen, job: JobFacts, now: float) -> Verdict:
    """A Job is over. Its pod, which another watch brings, says why."""
    last = seen.pods[-1] if seen.pods else None
    left = (seen.over_since or 0.0) + _POD_LAG - now
    if (last is None or not last.over) and left > 0:
        uid = last.facts.uid if last is not None else ""
        return Verdict(LaunchStatus(LaunchState.PLACED, instance_id=uid), look_again=left)
    return Verdict(_ended(last, job))


def _ended(last: SeenPod | None, job: JobFacts) -> LaunchStatus:
    if last is not None:
        why = pod_end(last.facts, suspended=last.suspended or job.suspended)
        return _status(LaunchState.ENDED, why, last.facts.uid)
    if job.failed is None:
        return LaunchStatus(LaunchState.ENDED, LaunchEnd.EXITED, "the Job is complete")
    end = LaunchEnd.CRASHED
    if job.failed.reason == "DeadlineExceeded":
        end = LaunchEnd.OVERDUE
    return LaunchStatus(LaunchState.ENDED, end, str(job.failed))


def _without_pod(seen: Seen, job: JobFacts) -> Verdict:
    last = seen.pods[-1] if seen.pods else None
    told = last is not None and last.facts.uid in seen.told_gone
    if told and job.suspended and seen.queue:
        return Verdict(LaunchStatus(LaunchState.WAITING, detail=seen.queue))
    if last is not None and carries_on(last, seen):
        return Verdict(displaced(last, job))
    if (last is not None and not told) or job.deleting or job.ending:
        # Its Job is about to say how it ends.
        uid = last.facts.uid if last is not None else ""
        return Verdict(LaunchStatus(LaunchState.PLACED, instance_id=uid))
    if seen.refusal is not None and is_denial(seen.refusal.message):
        text = f"the cluster's admission refused the pod: {seen.refusal.message}"
        facts = (("cause", "ADMISSION_REFUSED"),)
        status = LaunchStatus(LaunchState.ENDED, LaunchEnd.CONFIG_INVALID, text, facts)
        return Verdict(status, remove=True)
    if seen.refusal is not None:
        return Verdict(LaunchStatus(LaunchState.WAITING, detail=seen.refusal.message))
    if job.suspended:
        detail = seen.queue or "waiting for Kueue to admit the Job"
        return Verdict(LaunchStatus(LaunchState.WAITING, detail=detail))
    return Verdict(LaunchStatus(LaunchState.WAITING, detail=_SCHEDULING))


def _leaving(seen: Seen, pod: SeenPod, now: float, timeouts: Timeouts) -> Verdict:
    """A pod has to end. One that does not, long past its grace, sits on a lost node."""
    assert pod.deleting_since is not None  # noqa: S101  the caller has looked
    grace = pod.facts.deleting_grace or 0
    left = pod.deleting_since + grace + timeouts.lost_pod - now
    if left > 0:
        status = LaunchStatus(LaunchState.PLACED, instance_id=pod.facts.uid)
        return Verdict(status, look_again=left)
    if seen.stopping:
        return Verdict(_stopped(), remove=True)
    text = f"the pod did not end within {grace + timeouts.lost_pod:.0f} seconds: its node is lost"
    end = PodEnd(LaunchEnd.NODE_LOST, text, {})
    return Verdict(_status(LaunchState.ENDED, end, pod.facts.uid), remove=True)


def _stuck(pod: SeenPod, waiting: Said, now: float, timeouts: Timeouts) -> Verdict:
    """A container cannot start: for a while that may pass."""
    assert pod.waiting_since is not None  # noqa: S101  the caller has looked
    image = waiting.reason in _PULL_ERRORS or waiting.reason in _NO_IMAGE
    allowed = timeouts.image_pull if image else timeouts.container_start
    left = pod.waiting_since + allowed - now
    if left > 0 and waiting.reason not in _NO_IMAGE:
        status = LaunchStatus(LaunchState.PLACED, detail=str(waiting), instance_id=pod.facts.uid)
        return Verdict(status, look_again=left)
    end = LaunchEnd.IMAGE_FAILED if image else LaunchEnd.CONFIG_INVALID
    why = PodEnd(end, str(waiting), {"cause": waiting.reason})
    return Verdict(_status(LaunchState.ENDED, why, pod.facts.uid), remove=True)


def _stopped() -> LaunchStatus:
    return LaunchStatus(LaunchState.ENDED, LaunchEnd.STOPPED, "the worker was stopped")


def _status(state: LaunchState, end: PodEnd, uid: str) -> LaunchStatus:
    figures: Mapping[str, str] = end.figures
    return LaunchStatus(state, end.end, end.detail, tuple(sorted(figures.items())), instance_id=uid)
