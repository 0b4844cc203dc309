"""Makes the executor that the settings choose."""

from lighten_service.executors.local import LocalExecutor, LocalOptions
from lighten_service.jobs.ports import Executor
from lighten_service.settings import Settings, SettingsError
from lighten_service.settings.kubernetes import KubernetesSettings
from lighten_service.telemetry.metrics import Metrics

# What takes a worker seconds to import; by name, for the server never imports it.
_WARM_IMPORTS = (
    "lighten_service.worker.pipeline",
    "lighten_service.worker.engines.onnx_engine",
    "lighten_service.worker.engines.torch_engine",
)


def make_executor(settings: Settings, address: str, metrics: Metrics) -> Executor:
    """Return the executor, not opened yet.

    Args:
        settings: all of them.
        address: ``host:port`` where workers of this machine reach WorkerService.
        metrics: counts what the executor does.

    Raises:
        SettingsError: the pod template cannot work.
    """
    if settings.kubernetes is not None and not settings.local_workers:
        return _kubernetes_executor(settings, settings.kubernetes, address, metrics)
    return _local_executor(settings, address)


def _local_executor(settings: Settings, address: str) -> Executor:
    return LocalExecutor(
        LocalOptions(
            data_dir=settings.data_dir,
            server=address,
            cpu_slots=settings.executor.cpu_slots,
            gpus=settings.executor.gpus,
            warm_workers=settings.executor.warm_workers,
            warm_imports=_WARM_IMPORTS,
        )
    )


def _kubernetes_executor(
    settings: Settings, cluster: KubernetesSettings, address: str, metrics: Metrics
) -> Executor:
    try:
        # Its client takes a second and 75 MB to import.
        from lighten_service import kubernetes_setup
    except ModuleNotFoundError as error:
        raise SettingsError(
            f'executor.kind = "kubernetes" needs the extra lighten[kubernetes]: {error}'
        ) from error
    tls = settings.tls
    trusted = tls.trusted if tls is not None else str
    return kubernetes_setup.make_executor(cluster, address, trusted, metrics)
