"""Builds the control plane from its settings, and takes it down in order."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from lighten import v1 as pb
from lighten_service.api.optimization_servicer import OptimizationServicer, UseCases
from lighten_service.api.reload import keep_fresh
from lighten_service.api.worker_servicer import WorkerServicer
from lighten_service.clock import SystemClock
from lighten_service.edge import Edge, Security, open_security
from lighten_service.jobs.capabilities import capabilities
from lighten_service.jobs.create import CreatePolicy, JobCreator
from lighten_service.jobs.files import FileService
from lighten_service.jobs.lifecycle import Lifecycle, LifecycleOptions
from lighten_service.jobs.ports import Clock, Executor, JobStore, ObjectStore
from lighten_service.jobs.reconcile import Reconciler
from lighten_service.jobs.references import References
from lighten_service.jobs.resolve import ResourceDefaults
from lighten_service.jobs.retention import Sweeper
from lighten_service.jobs.retries import RetryPolicy
from lighten_service.jobs.service import JobService
from lighten_service.jobs.tokens import SECRET_NAME, TokenSigner, make_secret
from lighten_service.jobs.transfers import Transfers
from lighten_service.jobs.watch import WatchHub
from lighten_service.objects.access import AccessPolicy
from lighten_service.settings import Settings
from lighten_service.storage_setup import host_and_port, open_storage
from lighten_service.store import open_store
from lighten_service.telemetry.metrics import Metrics
from lighten_service.telemetry.metrics_server import MetricsServer, Readiness

# Makes the executor once the address is known at which workers reach the server.
ExecutorFactory = Callable[[Settings, str, Metrics], Executor]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens.

    Attributes:
        grpc: what callers give as target: ``host:port``, or ``grpcs://host:port`` with TLS.
        http: URL of the port of signed URLs.
        metrics: URL of the port of metrics and probes.
        workers: ``host:port`` of WorkerService.
    """

    grpc: str
    http: str
    metrics: str
    workers: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Parts:
    """What most of the server is built from."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    store: JobStore
    objects: ObjectStore


class ControlPlane:
    """A running server. Make it with ``open_control_plane``, which also takes it down."""

    def __init__(
        self,
        settings: Settings,
        addresses: Addresses,
        edge: Edge,
        probes: MetricsServer,
        background: list[asyncio.Task[None]],
    ) -> None:
        self.addresses = addresses
        self._settings = settings
        self._edge = edge
        self._probes = probes
        self._background = background

    async def run_until(self, stop: asyncio.Event) -> None:
        """Return when ``stop`` is set; raise what a background task died of."""
        waiting = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, *self._background}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            waiting.cancel()

    async def drain(self) -> None:
        """Stop serving. Workers carry on. Again: nothing happens."""
        self._probes.readiness = Readiness.DRAINING
        await self._edge.drain(self._settings.drain_seconds)


@asynccontextmanager
async def open_control_plane(
    settings: Settings, make_executor: ExecutorFactory
) -> AsyncIterator[ControlPlane]:
    """Start everything, yield the server once it answers, and take it down at the end.

    Raises:
        OSError: a port is in use, or a folder cannot be written.
        LightenError: store or storage cannot be opened.
    """
    async with AsyncExitStack() as stack:
        yield await _open(settings, make_executor, stack)


async def _open(
    settings: Settings, make_executor: ExecutorFactory, stack: AsyncExitStack
) -> ControlPlane:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    clock, metrics = SystemClock(), Metrics()
    metrics.watch_volume(settings.data_dir)
    security = open_security(settings, metrics, clock)
    probes = _serve_metrics(metrics, settings)
    stack.push_async_callback(asyncio.to_thread, probes.close)
    store = await open_store(settings.database_url, clock=clock, metrics=metrics)
    stack.push_async_callback(store.close)
    objects, http = await stack.enter_async_context(
        open_storage(settings, store, metrics, clock, security.certificates)
    )
    parts = _Parts(settings, clock, metrics, store, objects)

    edge = Edge(settings, metrics, security)
    executor = make_executor(settings, edge.worker_address, metrics)
    lifecycle = await _lifecycle(parts, executor)
    hub = WatchHub(store)
    edge.add(
        OptimizationServicer(_use_cases(parts, executor, lifecycle, hub)),
        _workers(parts, lifecycle),
    )
    background = await _start_background(parts, security, hub, stack)
    reconciler = Reconciler(store=store, executor=executor, lifecycle=lifecycle, metrics=metrics)
    await reconciler.start()
    stack.push_async_callback(reconciler.close)
    await edge.start()
    probes.readiness = Readiness.READY
    addresses = Addresses(
        grpc=edge.address,
        http=http,
        metrics=f"http://{host_and_port(_metrics_bind(settings), probes.port)}",
        workers=edge.worker_address,
        pid=os.getpid(),
    )
    plane = ControlPlane(settings, addresses, edge, probes, background)
    stack.push_async_callback(plane.drain)
    return plane


def _serve_metrics(metrics: Metrics, settings: Settings) -> MetricsServer:
    host = _metrics_bind(settings)
    try:
        return metrics.serve(host, settings.metrics_port)
    except OSError as error:
        address = host_and_port(host, settings.metrics_port)
        raise OSError(f"Prometheus' port cannot listen on {address}: {error}") from error


def _metrics_bind(settings: Settings) -> str:
    return settings.metrics_bind or settings.bind


async def _lifecycle(parts: _Parts, executor: Executor) -> Lifecycle:
    settings = parts.settings
    return Lifecycle(
        store=parts.store,
        objects=parts.objects,
        executor=executor,
        signer=TokenSigner(await parts.store.secret(SECRET_NAME, make_secret)),
        clock=parts.clock,
        metrics=parts.metrics,
        root_uri=settings.root_uri,
        options=LifecycleOptions(
            heartbeat_timeout=settings.heartbeat_timeout_seconds,
            start_timeout=settings.start_timeout,
            cancel_grace=settings.cancel_grace_seconds,
            stop_grace=settings.kill_grace_seconds,
            retry=RetryPolicy(first_pause=settings.retry_pause_seconds),
        ),
    )


def _workers(parts: _Parts, lifecycle: Lifecycle) -> WorkerServicer:
    transfers = Transfers(
        lifecycle,
        parts.objects,
        parts.settings.root_uri,
        expires_seconds=parts.settings.limits.url_expiry_seconds,
    )
    return WorkerServicer(lifecycle, transfers, parts.metrics)


def _use_cases(parts: _Parts, executor: Executor, lifecycle: Lifecycle, hub: WatchHub) -> UseCases:
    settings, store, objects, clock = parts.settings, parts.store, parts.objects, parts.clock
    limits = _limits(settings)
    access = AccessPolicy(
        settings.root_uri,
        s3_allowed=settings.project_access,
        file_roots=settings.file_roots,
        private=[settings.data_dir],
    )
    references = References(objects, access, max_files=settings.limits.max_input_files)
    policy = CreatePolicy(
        ResourceDefaults(**settings.defaults.model_dump()),
        gpu_profiles={profile.name for profile in executor.gpu_profiles},
        max_queued=settings.limits.max_queued_jobs,
    )
    return UseCases(
        creator=JobCreator(store, references, executor.admit, policy, clock),
        jobs=JobService(
            store,
            objects,
            storage_root=settings.root_uri,
            max_page_size=settings.limits.max_page_size,
            clock=clock,
        ),
        files=FileService(
            store, objects, storage_root=settings.root_uri, limits=limits, clock=clock
        ),
        store=store,
        hub=hub,
        capabilities=lambda: capabilities(
            server_version=version("lighten"),
            limits=limits,
            gpu_profiles=executor.gpu_profiles,
            workers=lifecycle.inventories,
        ),
    )


def _limits(settings: Settings) -> pb.Limits:
    limits = settings.limits
    return pb.Limits(
        max_upload_bytes=limits.max_upload_bytes,
        upload_expiry_seconds=limits.upload_expiry_seconds,
        url_expiry_seconds=limits.url_expiry_seconds,
        max_page_size=limits.max_page_size,
        max_queued_jobs=limits.max_queued_jobs,
    )


async def _start_background(
    parts: _Parts, security: Security, hub: WatchHub, stack: AsyncExitStack
) -> list[asyncio.Task[None]]:
    listening = asyncio.Event()
    tasks = [
        asyncio.create_task(hub.run(listening), name="watch-hub"),
        asyncio.create_task(_sweep_for_ever(parts), name="sweeper"),
        asyncio.create_task(keep_fresh(security.files), name="reload"),
    ]

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)
    await listening.wait()
    return tasks


async def _sweep_for_ever(parts: _Parts) -> None:
    settings = parts.settings
    sweeper = Sweeper(
        parts.store,
        parts.objects,
        storage_root=settings.root_uri,
        event_seconds=settings.retention.event_seconds,
        upload_seconds=settings.limits.upload_expiry_seconds,
        clock=parts.clock,
    )
    while True:
        await asyncio.sleep(settings.retention.sweep_seconds)
        await sweeper.sweep()
