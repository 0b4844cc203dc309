"""The port of Prometheus and of probes: plain HTTP, no credentials, nothing of any job."""

import socket
from collections.abc import Callable, Iterable
from enum import Enum
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

Environment = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Readiness(Enum):
    """What ``/readyz`` says; 200 for READY alone, else 503."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class MetricsServer:
    """Serves ``/metrics``, ``/healthz`` (200 while the process lives) and ``/readyz`` from daemon
    threads until it is closed.

    Raises:
        OSError: the address is in use or not this machine's.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.readiness = Readiness.STARTING
        self._metrics: Any = make_wsgi_app(registry)
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, self._answer, kind, _Handler)
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environment: Environment, start: StartResponse) -> Iterable[bytes]:
        match environment["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environment, start)
                return answer
            case "/healthz":
                return _say(start, "200 OK", "alive")
            case "/readyz":
                ready = self.readiness is Readiness.READY
                status = "200 OK" if ready else "503 Service Unavailable"
                return _say(start, status, self.readiness.value)
            case _:
                return _say(start, "404 Not Found", "there are /metrics, /healthz and /readyz")


def _say(start: StartResponse, status: str, text: str) -> Iterable[bytes]:
    # A list of its own: wsgiref adds the length to it.
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    """A slow reader holds up nobody, least of all a probe."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that says nothing or goes away early is no line of the log."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    # Of a client that says nothing.
    timeout = 30.0

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: no line for each."""
