"""Makes the executor of a cluster from its settings; imported where that is the executor alone."""

from collections.abc import Callable

from lighten_service.executors.kubernetes import (
    GpuProfile,
    KubernetesExecutor,
    KubernetesOptions,
    Limits,
    PriorityClass,
    TemplateError,
    Timeouts,
    load,
)
from lighten_service.settings import SettingsError
from lighten_service.settings.kubernetes import KubernetesSettings
from lighten_service.telemetry.metrics import Metrics


def make_executor(
    cluster: KubernetesSettings, address: str, trusted: Callable[[], str], metrics: Metrics
) -> KubernetesExecutor:
    """Return the executor, not opened yet.

    Args:
        cluster: its settings.
        address: where pods reach WorkerService unless ``cluster.server`` says so.
        trusted: see ``KubernetesOptions``.
        metrics: counts what the executor does.

    Raises:
        SettingsError: the pod template cannot work.
    """
    try:
        template = load(cluster.pod_template) if cluster.pod_template else {}
    except TemplateError as error:
        raise SettingsError(f"kubernetes.pod_template: {error}") from error
    options = KubernetesOptions(
        namespace=cluster.namespace,
        server=cluster.server or address,
        image=cluster.image,
        instance=cluster.instance,
        trusted=trusted,
        server_name=cluster.server_name,
        kubeconfig=cluster.kubeconfig,
        context=cluster.context,
        pod_template=template,
        gpu_profiles=[GpuProfile(**profile.model_dump()) for profile in cluster.gpu_profiles],
        priority_classes=[PriorityClass(**each.model_dump()) for each in cluster.priority_classes],
        queue=cluster.queue,
        limits=_limits(cluster),
        cpus=cluster.cpus,
        shm_bytes=cluster.shm_bytes,
        user_id=cluster.user_id,
        runtime_class=cluster.runtime_class,
        service_account=cluster.service_account,
        timeouts=_timeouts(cluster),
    )
    return KubernetesExecutor(options, metrics.kubernetes)


def _limits(cluster: KubernetesSettings) -> Limits:
    return Limits(
        gpus=cluster.max_gpus,
        memory_bytes=cluster.max_memory_bytes,
        scratch_bytes=cluster.max_scratch_bytes,
    )


def _timeouts(cluster: KubernetesSettings) -> Timeouts:
    return Timeouts(
        termination_grace=cluster.termination_grace_seconds,
        image_pull=cluster.image_pull_timeout_seconds,
        container_start=cluster.container_start_timeout_seconds,
        lost_pod=cluster.lost_pod_seconds,
        deadline_margin=cluster.deadline_margin_seconds,
        forbidden=cluster.forbidden_seconds,
        finished_job=cluster.keep_finished_seconds,
        request=cluster.request_timeout_seconds,
    )
