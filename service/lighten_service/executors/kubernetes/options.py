"""How a cluster runs workers: what an operator decides, already checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """A kind of GPU that callers choose by its name, and what it means to the cluster.

    Attributes:
        name: what Resources.gpu_profile says.
        description: for callers.
        resource: extended resource of the GPU, for example ``nvidia.com/gpu``.
        node_selector: labels of the nodes that have it.
        tolerations: taints of these nodes, as in a pod.
        runtime_class: RuntimeClass of the pod; empty: the one of ``KubernetesOptions``.
        max_gpus: most GPUs of one job; None: ``Limits.gpus``.
    """

    name: str
    description: str = ""
    resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    runtime_class: str = ""
    max_gpus: int | None = None


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """Classes for jobs whose Resources.priority is at least ``minimum``; empty: none.

    Attributes:
        minimum: lowest priority that gets them.
        pod: PriorityClass of the pod: whom the scheduler preempts.
        queue: Kueue's WorkloadPriorityClass: who is admitted first.
    """

    minimum: int
    pod: str = ""
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that one job may ask for: GPUs, and bytes. None: whatever the API allows."""

    gpus: int = 8
    memory_bytes: int | None = None
    scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds.

    Attributes:
        termination_grace: from SIGTERM to the kill of a pod that the cluster takes away; a worker
            writes its last step in it.
        image_pull: how long an image that cannot be pulled is tried.
        container_start: how long a container that cannot be made is tried.
        lost_pod: how long a pod is waited for that is past its grace and still there.
        deadline_margin: from resources.run_timeout to the pod's own deadline, which is counted
            from the pull of its image.
        forbidden: how long launches wait while the API server forbids them, before that fails jobs.
        finished_job: how long the Job of a launch that ended stays to be looked at.
        request: one request to the API server.
        adoption: how long a start waits for the API server before it goes on without it.
    """

    termination_grace: int = 30
    image_pull: float = 300.0
    container_start: float = 60.0
    lost_pod: float = 30.0
    deadline_margin: int = 900
    forbidden: float = 60.0
    finished_job: int = 3600
    request: float = 15.0
    adoption: float = 10.0


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """Everything that the executor needs to know.

    Attributes:
        namespace: where Jobs and their Secrets live.
        instance: tells the Jobs of this server from those of another one in the namespace.
        server: gRPC target of WorkerService as pods reach it.
        image: of the worker.
        trusted: returns the PEM of the CA that workers trust for ``server``, read anew for each
            launch; empty: plain text. May raise OSError.
        server_name: name in the server's certificate; empty: the host of ``server``.
        kubeconfig: file, None: in a pod its service account, elsewhere kubectl's default.
        context: of the kubeconfig; empty: the current one.
        pod_template: the operator's pod, as ``template.load`` returns it.
        gpu_profiles: what callers may ask for by name.
        priority_classes: by Resources.priority.
        queue: Kueue's LocalQueue; empty: Kueue is not used.
        limits: what one job may ask for.
        cpus: of a worker, requested and at most.
        shm_bytes: size of ``/dev/shm``, a part of the worker's memory.
        user_id: user and group of the worker.
        runtime_class: RuntimeClass of pods without a profile's own; empty: the cluster's default.
        service_account: of the pods, which get no token of it; empty: the namespace's default.
        command: starts a worker.
        timeouts: see there.
    """

    namespace: str
    server: str
    image: str
    instance: str = "lighten"
    trusted: Callable[[], str] = str
    server_name: str = ""
    kubeconfig: Path | None = None
    context: str = ""
    pod_template: Mapping[str, Any] = field(default_factory=dict)
    gpu_profiles: Sequence[GpuProfile] = ()
    priority_classes: Sequence[PriorityClass] = ()
    queue: str = ""
    limits: Limits = field(default_factory=Limits)
    cpus: float = 4.0
    shm_bytes: int = _GIB
    user_id: int = 65534
    runtime_class: str = ""
    service_account: str = ""
    command: Sequence[str] = ("python", "-P", "-m", "lighten_service.worker.main")
    timeouts: Timeouts = field(default_factory=Timeouts)
