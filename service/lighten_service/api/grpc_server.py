"""The gRPC server: services, health, reflection, and a stop that loses nothing."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lighten.v1 import optimization_service_pb2, worker_service_pb2
from lighten.v1.optimization_service_pb2_grpc import (
    OptimizationServiceServicer,
    add_OptimizationServiceServicer_to_server,
)
from lighten.v1.worker_service_pb2_grpc import (
    WorkerServiceServicer,
    add_WorkerServiceServicer_to_server,
)
from lighten_service.api.authorization import Guard
from lighten_service.api.interceptors import CallInterceptor
from lighten_service.telemetry.metrics import Metrics

OPTIMIZATION = optimization_service_pb2.DESCRIPTOR.services_by_name["OptimizationService"].full_name
WORKER = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

_MAX_MESSAGE_BYTES = 16 << 20
# For answers that are under way to their callers.
_LAST_WORDS_SECONDS = 0.5
_OPTIONS = (
    # A port in use is an error, not shared.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # Watchers and workers ping to find a dead connection out; see the client's keepalive.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class GrpcServer:
    """Serves some of OptimizationService and WorkerService on one port, with health and, where
    callers come, reflection.

    Args:
        guard: decides on every call; None: all may call.
    """

    def __init__(self, metrics: Metrics, guard: Guard | None = None) -> None:
        self._calls = CallInterceptor(metrics, guard)
        self._server = grpc.aio.server(interceptors=(self._calls,), options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names: list[str] = []

    def bind(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Take a port (0: a free one) and return it. ``credentials``: None for plain text.

        Raises:
            OSError: it is in use, or the address is not this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}; is it in use?") from error

    def add_optimization(self, servicer: OptimizationServiceServicer) -> None:
        """Serve callers, before ``start``."""
        add_OptimizationServiceServicer_to_server(servicer, self._server)
        self._names.append(OPTIMIZATION)

    def add_workers(self, servicer: WorkerServiceServicer) -> None:
        """Serve workers, before ``start``."""
        add_WorkerServiceServicer_to_server(servicer, self._server)
        self._names.append(WORKER)

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        if OPTIMIZATION in self._names:
            names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, grace_seconds: float) -> None:
        """Stop: probes hear it first, streams end with UNAVAILABLE so that callers connect again,
        unary calls end within the grace period. Again: nothing happens.
        """
        await self._health.enter_graceful_shutdown()
        await self._calls.drain(grace_seconds)
        await self._server.stop(grace=_LAST_WORDS_SECONDS)
