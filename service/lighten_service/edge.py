"""The gRPC ports as the settings ask for them: TLS, tokens, and where workers come in."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceServicer
from lighten.v1.worker_service_pb2_grpc import WorkerServiceServicer
from lighten_service.api.authorization import Guard
from lighten_service.api.grpc_server import GrpcServer
from lighten_service.api.principals import read_principals
from lighten_service.api.reload import Reloaded
from lighten_service.jobs.ports import Clock
from lighten_service.settings import Settings
from lighten_service.storage_setup import host_and_port
from lighten_service.telemetry.logs import get_logger
from lighten_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lighten_service.api.certificates import Certificates

log = get_logger(__name__)

_LOOPBACK = "127.0.0.1"
_WORKER_PORT = 8473


@dataclass(frozen=True, slots=True)
class Security:
    """What the ports show to callers and ask of them; None: nothing."""

    certificates: "Certificates | None"
    guard: Guard | None
    # To be looked at for changes.
    files: tuple[Reloaded[Any], ...]


def open_security(settings: Settings, metrics: Metrics, clock: Clock) -> Security:
    """Read certificates and tokens.

    Raises:
        SettingsError: a file is missing or broken.
    """
    files: list[Reloaded[Any]] = []
    certificates = guard = None
    if settings.tls is not None:
        # Imported where it is used: its library costs a start without TLS a tenth of a second.
        from lighten_service.api.certificates import Certificates

        certificates = Certificates(settings.tls, metrics, for_pods=not settings.local_workers)
        files.append(certificates.reloaded)
    if settings.auth is not None:
        path = settings.auth.tokens
        principals = Reloaded("tokens", [path], lambda: read_principals(path), metrics)
        guard = Guard(principals, metrics, clock)
        files.append(principals)
    if settings.insecure_bind and (certificates is None or guard is None):
        log.warning("insecure_bind: whoever reaches these ports can run jobs and read results")
    return Security(certificates, guard, tuple(files))


class Edge:
    """One port for all, or one for callers and one for workers.

    Attributes:
        address: where callers reach the server, as ``lighten --target`` takes it.
        worker_address: ``host:port`` of WorkerService.

    Raises:
        OSError: a port is in use.
    """

    def __init__(self, settings: Settings, metrics: Metrics, security: Security) -> None:
        self._callers = self._workers = GrpcServer(metrics, security.guard)
        certificates = security.certificates
        port = self._callers.bind(
            settings.bind, settings.port, certificates.for_callers() if certificates else None
        )
        bound = host_and_port(settings.bind, port)
        self.address = f"grpcs://{bound}" if certificates else bound
        self.worker_address = bound
        if settings.workers_apart:
            self._workers = GrpcServer(metrics, security.guard)
            self.worker_address = self._bind_workers(settings, certificates)

    def add(self, optimization: OptimizationServiceServicer, worker: WorkerServiceServicer) -> None:
        """Give the services their code, before ``start``."""
        self._callers.add_optimization(optimization)
        self._workers.add_workers(worker)

    async def start(self) -> None:
        """Serve."""
        for server in self._servers:
            await server.start()

    async def drain(self, grace_seconds: float) -> None:
        """Stop as ``GrpcServer.drain`` does, all ports at the same time."""
        await asyncio.gather(*(server.drain(grace_seconds) for server in self._servers))

    @property
    def _servers(self) -> list[GrpcServer]:
        apart = self._workers is not self._callers
        return [self._callers, self._workers] if apart else [self._callers]

    def _bind_workers(self, settings: Settings, certificates: "Certificates | None") -> str:
        asked = settings.worker_port
        port = _WORKER_PORT if asked is None else asked
        if settings.local_workers:
            # Nobody else can listen in, and the certificate would not name this address.
            return f"{_LOOPBACK}:{self._workers.bind(_LOOPBACK, port)}"
        credentials = certificates.for_workers() if certificates else None
        bound = self._workers.bind(settings.bind, port, credentials)
        return host_and_port(settings.bind, bound)
