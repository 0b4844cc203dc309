"""The server's certificate for gRPC and HTTP, renewed without a restart."""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import grpc
from cryptography import x509

from lighten_service.api.reload import Reloaded
from lighten_service.settings import SettingsError
from lighten_service.settings.security import TlsSettings
from lighten_service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the files of ``[tls]`` say, checked: key and certificate belong together."""

    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext


class Certificates:
    """Credentials for both kinds of port; each handshake uses the newest certificate.

    Args:
        for_pods: workers in pods are told what to trust, so that has to be whole.

    Raises:
        SettingsError: a file cannot be read, or the files do not fit together.
    """

    def __init__(self, settings: TlsSettings, metrics: Metrics, *, for_pods: bool) -> None:
        files = [settings.cert, settings.key, settings.client_ca, settings.ca]
        self._asks_callers = settings.client_ca is not None
        self.reloaded = Reloaded(
            "certificate",
            [path for path in files if path is not None],
            lambda: _read(settings, metrics, for_pods=for_pods),
            metrics,
        )

    def for_callers(self) -> grpc.ServerCredentials:
        """gRPC credentials that ask for a client certificate where the settings want one."""
        return self._grpc(ask=self._asks_callers)

    def for_workers(self) -> grpc.ServerCredentials:
        """gRPC credentials that never ask: a worker has its token."""
        return self._grpc(ask=False)

    def for_http(self) -> ssl.SSLContext:
        """Return a context whose handshakes use the newest certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.reloaded.value.http

        context.sni_callback = renew
        return context

    def _grpc(self, *, ask: bool) -> grpc.ServerCredentials:
        given = self.reloaded.value

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self.reloaded.value is given:
                return None
            given = self.reloaded.value
            return given.grpc

        # None keeps the one that is in use; the stubs know nothing of it.
        return grpc.dynamic_ssl_server_credentials(given.grpc, cast(Any, newest), ask)


def _read(settings: TlsSettings, metrics: Metrics, *, for_pods: bool) -> Certificate:
    chain = _pem("tls.cert", settings.cert)
    trusted = _pem("tls.ca", settings.ca) if settings.ca else chain
    client_ca = _pem("tls.client_ca", settings.client_ca) if settings.client_ca else None
    if for_pods and not any(item.issuer == item.subject for item in trusted.certificates):
        raise SettingsError(
            f"tls.ca: workers need a self-signed certificate to trust, and "
            f"{settings.ca or settings.cert} holds none: name the CA that signed tls.cert"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty passphrase: without one OpenSSL would ask at the terminal.
        context.load_cert_chain(settings.cert, settings.key, password="")
        key = settings.key.read_bytes()
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"tls.key: {settings.key} is not the private key, without a passphrase, of "
            f"{settings.cert}: {error}"
        ) from error
    for name, found in (("server", chain), ("ca", trusted), ("client_ca", client_ca)):
        if found is not None:
            metrics.certificate_loaded(name, min(map(_expiry, found.certificates)).timestamp())
    configuration = grpc.ssl_server_certificate_configuration(
        [(key, chain.pem)], root_certificates=client_ca.pem if client_ca else None
    )
    return Certificate(configuration, context)


@dataclass(frozen=True, slots=True)
class _Pem:
    pem: bytes
    certificates: list[x509.Certificate]


def _pem(setting: str, path: Path) -> _Pem:
    try:
        pem = path.read_bytes()
        return _Pem(pem, x509.load_pem_x509_certificates(pem))
    except OSError as error:
        raise SettingsError(f"{setting}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{setting}: {path} holds no PEM certificate: {error}") from error


def _expiry(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_after_utc
