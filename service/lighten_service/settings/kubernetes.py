"""Workers as pods of a cluster."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from lighten_service.settings.section import Bytes, Seconds, Section

# Names as Kubernetes takes them.
_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_OPTIONAL_SUBDOMAIN = rf"{_SUBDOMAIN}|^$"
_LABEL_VALUE = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
_EXTENDED_RESOURCE = (
    r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
)
_LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"

LabelKey = Annotated[str, Field(pattern=_LABEL_KEY)]
LabelValue = Annotated[str, Field(pattern=rf"{_LABEL_VALUE}|^$")]
OptionalName = Annotated[str, Field(pattern=_OPTIONAL_SUBDOMAIN)]


class GpuProfileSettings(Section):
    """A kind of GPU that callers choose by name (Resources.gpu_profile)."""

    name: Annotated[str, Field(pattern=_LABEL)]
    # For callers, in GetCapabilities.
    description: str = ""
    # Extended resource that the pod requests.
    resource: Annotated[str, Field(pattern=_EXTENDED_RESOURCE)] = "nvidia.com/gpu"
    # Labels of the nodes that have it.
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    # Taints of these nodes that the pod tolerates, as in a pod.
    tolerations: tuple[dict[str, Any], ...] = ()
    # Empty: `kubernetes.runtime_class`.
    runtime_class: OptionalName = ""
    # Of one job. None: `kubernetes.max_gpus`.
    max_gpus: Annotated[int, Field(ge=1, le=8)] | None = None


class PriorityClassSettings(Section):
    """Classes of jobs whose Resources.priority is at least `minimum`."""

    minimum: Annotated[int, Field(ge=-1000, le=1000)]
    # PriorityClass of the pod. Empty: the cluster's default.
    pod: OptionalName = ""
    # Kueue's WorkloadPriorityClass. Empty: none.
    queue: OptionalName = ""


class KubernetesSettings(Section):
    """Needed where `executor.kind` is "kubernetes"."""

    # Where Jobs are made; it has to be there.
    namespace: Annotated[str, Field(pattern=_LABEL)]
    # Image of the worker.
    image: Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
    # gRPC target of this server as pods reach it, `host:port`. Empty: the address that it listens
    # on, which serves pods in the network of this machine alone.
    server: Annotated[str, Field(pattern=r"^(\S+:\d{1,5})?$")] = ""
    # Name in the server's certificate where it is not the one in `server`.
    server_name: str = ""
    # Tells this server's Jobs from those of another one in the namespace.
    instance: Annotated[str, Field(pattern=_LABEL_VALUE)] = "lighten"

    # None: in a pod its service account, elsewhere kubectl's default.
    kubeconfig: Path | None = None
    # Of the kubeconfig. Empty: the current one.
    context: str = ""

    # YAML file with the metadata and spec that every worker pod starts from.
    pod_template: Path | None = None
    # Of the pods; they get no token of it. Empty: the namespace's default.
    service_account: OptionalName = ""
    # RuntimeClass of the pods. Empty: the cluster's default.
    runtime_class: OptionalName = ""
    # User and group of the worker. Not 0.
    user_id: Annotated[int, Field(ge=1, le=65534)] = 65534
    # CPU cores of a worker, requested and at most.
    cpus: Annotated[float, Field(ge=0.1, le=1024)] = 4.0
    # /dev/shm, a part of the worker's memory; at most half of it.
    shm_bytes: Bytes = 1 << 30

    gpu_profiles: tuple[GpuProfileSettings, ...] = ()
    priority_classes: tuple[PriorityClassSettings, ...] = ()
    # Kueue's LocalQueue. Empty: Kubernetes schedules alone.
    queue: OptionalName = ""

    # What one job may ask for. None: as much as the API allows.
    max_gpus: Annotated[int, Field(ge=0, le=8)] = 8
    max_memory_bytes: Bytes | None = None
    max_scratch_bytes: Bytes | None = None

    # From SIGTERM to the kill of a pod that the cluster takes away.
    termination_grace_seconds: Annotated[int, Field(ge=5, le=3600)] = 30
    # How long an image is tried that cannot be pulled.
    image_pull_timeout_seconds: Seconds = 300.0
    # How long a container is tried that cannot be made.
    container_start_timeout_seconds: Seconds = 60.0
    # A pod past its grace that is still there after so long is given up, and its node with it.
    lost_pod_seconds: Seconds = 30.0
    # The pod's own deadline is resources.run_timeout and this: pulls of the image count in it.
    deadline_margin_seconds: Annotated[int, Field(ge=60, le=86_400)] = 900
    # How long launches wait while the API server forbids them, before that fails jobs.
    forbidden_seconds: Annotated[float, Field(ge=0)] = 60.0
    # How long the Job of an ended launch stays, to be looked at.
    keep_finished_seconds: Annotated[int, Field(ge=0, le=604_800)] = 3600
    # Of one request to the API server.
    request_timeout_seconds: Seconds = 15.0

    @field_validator("kubeconfig", "pod_template")
    @classmethod
    def _is_file(cls, value: Path | None) -> Path | None:
        path = value.expanduser().absolute() if value is not None else None
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    @model_validator(mode="after")
    def _names_once(self) -> "KubernetesSettings":
        for what, names in (
            ("gpu_profiles", [profile.name for profile in self.gpu_profiles]),
            ("priority_classes", [str(each.minimum) for each in self.priority_classes]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} is there twice")
        return self
