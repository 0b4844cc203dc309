"""Object storage as the settings ask for it, and the HTTP port of the local folder's URLs."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aiohttp import web

from lighten_service.jobs.ports import Clock, JobStore, ObjectStore
from lighten_service.objects.http import object_routes
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.router import ObjectRouter
from lighten_service.objects.signing import UrlSigner
from lighten_service.settings import S3Settings, Settings
from lighten_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lighten_service.api.certificates import Certificates

_SECRET_NAME = "signed-urls"  # noqa: S105  a name, not a secret
_SECRET_BYTES = 32
_SHUTDOWN_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def open_storage(
    settings: Settings,
    store: JobStore,
    metrics: Metrics,
    clock: Clock,
    certificates: "Certificates | None",
) -> AsyncIterator[tuple[ObjectRouter, str]]:
    """Yield the storage and the URL of the HTTP port; close both at the end.

    With ``certificates`` the port speaks TLS, and workers of this machine get one of their own on
    loopback, in plain text, whose address needs to stand in no certificate.

    Raises:
        OSError: the port is in use.
    """
    listener = listen(settings.bind, settings.http_port)
    base = _url("https" if certificates else "http", settings.bind, listener)
    listeners = [(listener, certificates.for_http() if certificates else None)]
    worker_base = base
    if certificates and settings.local_workers and not settings.worker_url:
        inner = listen(_LOOPBACK, settings.worker_http_port)
        worker_base = _url("http", _LOOPBACK, inner)
        listeners.append((inner, None))
    secret = await store.secret(_SECRET_NAME, lambda: secrets.token_bytes(_SECRET_BYTES))
    signer = UrlSigner(
        secret, settings.public_url or base, settings.worker_url or worker_base, clock
    )
    local = LocalObjectStore(_roots(settings), signer, metrics)
    stores: dict[str, ObjectStore] = {"file": local}
    if settings.s3 is not None:
        stores["s3"] = _open_s3(settings.s3, metrics)
    router = ObjectRouter(stores)
    application = web.Application()
    application.add_routes(object_routes(local))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        for socket_, context in listeners:
            await web.SockSite(runner, socket_, ssl_context=context).start()
        yield router, base
    finally:
        await runner.cleanup()
        await router.close()


def _open_s3(settings: S3Settings, metrics: Metrics) -> ObjectStore:
    # Imported where it is used: the S3 client would cost every start a third of a second.
    from lighten_service.objects.s3 import S3ObjectStore, S3Options

    options = S3Options(
        endpoint=settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        session_token=settings.session_token.get_secret_value(),
        public_endpoint=settings.public_endpoint,
        worker_endpoint=settings.worker_endpoint,
        region=settings.region,
    )
    return S3ObjectStore(options, metrics)


def _url(scheme: str, host: str, listener: socket.socket) -> str:
    return f"{scheme}://{host_and_port(host, listener.getsockname()[1])}"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises OSError, which names the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"HTTP cannot listen on {host_and_port(host, port)}: {error}") from error


def host_and_port(host: str, port: int) -> str:
    """Return ``host:port`` as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _roots(settings: Settings) -> list[tuple[Path, bool]]:
    roots = [(root, False) for root in settings.file_roots]
    parts = urlsplit(settings.root_uri)
    if parts.scheme == "file":
        roots.append((Path(unquote(parts.path)), True))
    return roots
