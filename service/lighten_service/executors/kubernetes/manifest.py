"""The Job of a launch, and the Secret with its ticket."""

import math
from base64 import b64encode
from typing import Any

from lighten import v1 as pb
from lighten_service.executors.kubernetes import naming, quantities
from lighten_service.executors.kubernetes.merging import merge
from lighten_service.executors.kubernetes.options import (
    GpuProfile,
    KubernetesOptions,
    PriorityClass,
)
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.ports import LaunchRequest
from lighten_service.jobs.ticket import Ticket

_TICKET_FOLDER = "/var/run/lighten"
_TICKET_FILE = "ticket.json"
_TICKET_VOLUME = "ticket"
_SHM_VOLUME = "shm"
_SCRATCH_FOLDER = "/scratch"
# Container logs count as ephemeral storage too.
_LOG_BYTES = 256 << 20
_MAX_DEADLINE = (1 << 31) - 1
# Of a worker that said why it failed, one without a ticket, one that the server refused. Not
# EXIT_STOPPED: it would fail a Job that is suspended, which otherwise carries on.
_WORKER_EXITS = (1, 2, 4)
# A node that is gone is noticed after this many seconds.
_LOST_NODE_SECONDS = 10

_PLAIN_GPU = GpuProfile(name="")

Json = dict[str, Any]


def job(request: LaunchRequest, options: KubernetesOptions) -> Json:
    """Return the Job of a launch.

    Raises:
        ResourceExhausted: GPU_PROFILE_UNKNOWN.
    """
    key = (request.job_id, request.launch)
    labels = naming.labels(options.instance, key, request.project)
    classes = priority_class(request.resources.priority, options)
    queue: Json = {}
    if options.queue:
        queue[naming.QUEUE_LABEL] = options.queue
        if classes.queue:
            queue[naming.QUEUE_PRIORITY_LABEL] = classes.queue
    pod = merge(options.pod_template, {"metadata": {"labels": labels}})
    pod["spec"] = _pod_spec(pod.get("spec", {}), request, options, classes)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": naming.object_name(key), "labels": {**labels, **queue}},
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            # Kueue admits by taking this back.
            "suspend": bool(options.queue),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _FAILURE_RULES},
            "ttlSecondsAfterFinished": options.timeouts.finished_job,
            "template": pod,
        },
    }


def secret(request: LaunchRequest, options: KubernetesOptions, job_uid: str) -> Json:
    """Return the Secret of a launch, which goes with its Job.

    Raises:
        OSError: the file of the CA cannot be read.
    """
    key = (request.job_id, request.launch)
    ticket = Ticket(
        server=options.server,
        job=request.name,
        launch=request.launch,
        token=request.token,
        scratch=_SCRATCH_FOLDER,
        ca=options.trusted(),
        server_name=options.server_name,
        grace_seconds=options.timeouts.termination_grace,
    )
    name = naming.object_name(key)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {
            "name": name,
            "labels": naming.labels(options.instance, key, request.project),
            "ownerReferences": [owner],
        },
        "data": {_TICKET_FILE: b64encode(ticket.to_line()).decode()},
    }


def gpu_profile(resources: pb.Resources, options: KubernetesOptions) -> GpuProfile | None:
    """Return the kind of GPU that a job gets, None when it asks for none.

    Raises:
        ResourceExhausted: GPU_PROFILE_UNKNOWN, the operator took the profile away.
    """
    if not resources.gpu_profile:
        return _PLAIN_GPU if resources.gpus else None
    for profile in options.gpu_profiles:
        if profile.name == resources.gpu_profile:
            return profile
    raise ResourceExhausted(
        "GPU_PROFILE_UNKNOWN",
        f'the operator offers no GPU profile "{resources.gpu_profile}" any more; choose one of '
        "GetCapabilities",
        field="resources.gpu_profile",
    )


def priority_class(priority: int, options: KubernetesOptions) -> PriorityClass:
    """Return the classes of the highest minimum that a priority reaches."""
    reached = [each for each in options.priority_classes if each.minimum <= priority]
    return max(reached, key=lambda each: each.minimum, default=PriorityClass(minimum=priority))


# The first rule that matches counts.
_FAILURE_RULES: list[Json] = [
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": naming.WORKER,
            "operator": "In",
            "values": list(_WORKER_EXITS),
        },
    },
]


def _pod_spec(
    base: Json, request: LaunchRequest, options: KubernetesOptions, classes: PriorityClass
) -> Json:
    resources = request.resources
    own: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": options.timeouts.termination_grace,
        "tolerations": [_gone("not-ready"), _gone("unreachable")],
        "securityContext": {**_identity(options), "fsGroup": options.user_id},
        "containers": [_worker(base, request, options)],
        "volumes": _volumes(base, request, options),
    }
    if resources.HasField("run_timeout"):
        allowed = math.ceil(resources.run_timeout.ToNanoseconds() / 1e9)
        deadline = allowed + options.timeouts.deadline_margin
        own["activeDeadlineSeconds"] = min(deadline, _MAX_DEADLINE)
    profile = gpu_profile(resources, options)
    if profile is not None:
        own["nodeSelector"] = dict(profile.node_selector)
        own["tolerations"] += profile.tolerations
    named = {
        "runtimeClassName": (profile.runtime_class if profile else "") or options.runtime_class,
        "priorityClassName": classes.pod,
        "serviceAccountName": options.service_account,
    }
    own |= {name: value for name, value in named.items() if value}
    # These are whole: half of an operator's and half of ours would be no volume.
    names = {volume["name"] for volume in own["volumes"]}
    kept = [volume for volume in base.get("volumes", ()) if volume["name"] not in names]
    return merge({**base, "volumes": kept}, own)


def _worker(base: Json, request: LaunchRequest, options: KubernetesOptions) -> Json:
    amounts = _amounts(request.resources, options)
    container: Json = {
        "name": naming.WORKER,
        "image": options.image,
        "args": ["--ticket", f"{_TICKET_FOLDER}/{_TICKET_FILE}"],
        "env": [
            {
                "name": "LIGHTEN_INSTANCE_ID",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}},
            }
        ],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            # Again: what a template says of the container goes over what is said of the pod.
            **_identity(options),
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": []},
        },
        "volumeMounts": [
            {"name": _TICKET_VOLUME, "mountPath": _TICKET_FOLDER, "readOnly": True},
            {"name": naming.SCRATCH, "mountPath": _SCRATCH_FOLDER},
            {"name": _SHM_VOLUME, "mountPath": "/dev/shm"},  # noqa: S108  the pod's own
        ],
    }
    theirs = [each for each in base.get("containers", ()) if each["name"] == naming.WORKER]
    if not any("command" in each for each in theirs):
        container["command"] = list(options.command)
    return container


def _identity(options: KubernetesOptions) -> Json:
    return {
        "runAsNonRoot": True,
        "runAsUser": options.user_id,
        "runAsGroup": options.user_id,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _amounts(resources: pb.Resources, options: KubernetesOptions) -> Json:
    amounts = {
        "cpu": quantities.cpus(options.cpus),
        "memory": str(resources.memory_bytes),
        "ephemeral-storage": str(resources.scratch_bytes + _LOG_BYTES),
    }
    profile = gpu_profile(resources, options)
    if profile is not None and resources.gpus:
        amounts[profile.resource] = str(resources.gpus)
    return {name: amount for name, amount in amounts.items() if amount != "0"}


def _volumes(base: Json, request: LaunchRequest, options: KubernetesOptions) -> list[Json]:
    secret_name = naming.object_name((request.job_id, request.launch))
    shm_bytes = min(options.shm_bytes, request.resources.memory_bytes // 2)
    volumes: list[Json] = [
        {"name": _TICKET_VOLUME, "secret": {"secretName": secret_name, "defaultMode": 0o440}},
        {"name": _SHM_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": str(shm_bytes)}},
    ]
    # An operator may have a faster disk for it.
    if all(volume["name"] != naming.SCRATCH for volume in base.get("volumes", ())):
        size = str(request.resources.scratch_bytes)
        volumes.append({"name": naming.SCRATCH, "emptyDir": {"sizeLimit": size}})
    return volumes


def _gone(taint: str) -> Json:
    return {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": _LOST_NODE_SECONDS,
    }
