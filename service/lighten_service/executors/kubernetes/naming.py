"""Names and labels of what Lighten makes in a cluster; labels are the index of the executor."""

from collections.abc import Mapping
from typing import Any

# Who a launch is: job id and number.
LaunchKey = tuple[str, int]

JOB_LABEL = "lighten.dev/job"
LAUNCH_LABEL = "lighten.dev/launch"
PROJECT_LABEL = "lighten.dev/project"
_INSTANCE_LABEL = "app.kubernetes.io/instance"
_FIXED = {
    "app.kubernetes.io/name": "lighten",
    "app.kubernetes.io/component": "worker",
    "app.kubernetes.io/managed-by": "lighten-server",
}

# Kueue's own labels.
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
QUEUED_JOB_LABEL = "kueue.x-k8s.io/job-uid"

WORKER = "worker"
SCRATCH = "scratch"


def object_name(key: LaunchKey) -> str:
    """Return the name of a launch's Job and of its Secret."""
    job_id, launch = key
    return f"lighten-{job_id}-{launch}"


def labels(instance: str, key: LaunchKey, project: str) -> dict[str, str]:
    """Return the labels of a launch's Job, pods and Secret."""
    job_id, launch = key
    return {
        **_FIXED,
        _INSTANCE_LABEL: instance,
        PROJECT_LABEL: project,
        JOB_LABEL: job_id,
        LAUNCH_LABEL: str(launch),
    }


def selector(instance: str, key: LaunchKey | None = None) -> str:
    """Return the label selector of everything that one server made, or of one launch."""
    chosen = {**_FIXED, _INSTANCE_LABEL: instance}
    if key is not None:
        chosen |= {JOB_LABEL: key[0], LAUNCH_LABEL: str(key[1])}
    return ",".join(f"{name}={value}" for name, value in chosen.items())


def key_of(metadata: Mapping[str, Any], instance: str) -> LaunchKey | None:
    """Return the launch to which an object belongs by its labels; None when it is not ours."""
    found = metadata.get("labels") or {}
    job_id, launch = found.get(JOB_LABEL, ""), found.get(LAUNCH_LABEL, "")
    ours = found.get(_INSTANCE_LABEL) == instance and all(
        found.get(name) == value for name, value in _FIXED.items()
    )
    return (job_id, int(launch)) if ours and job_id and launch.isdigit() else None
