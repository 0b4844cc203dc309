"""Why a server that is there cannot be talked to: gRPC says little more than that it failed."""

import socket
import ssl
from contextlib import suppress

from lighten._access import Access
from lighten.errors import FailedPrecondition, LightenError

_SECONDS = 2.0
# A refused client certificate is told after the handshake, as soon as the client reads.
_VERDICT_SECONDS = 0.5


def diagnose(access: Access) -> LightenError | None:
    """Try a TLS handshake with the server, and return what stands between the two sides: another
    try would change nothing about it. None: nothing of TLS, the server is away.
    """
    if access.opaque:
        return None
    host, _, port = access.address.rpartition(":")
    host = host.strip("[]")
    with (
        # Whatever is not certain is for another try.
        suppress(OSError, ValueError),
        socket.create_connection((host, int(port)), _SECONDS) as connection,
    ):
        if access.credentials is None:
            return _plain(connection, access)
        return _secure(connection, host, access)
    return None


def _plain(connection: socket.socket, access: Access) -> LightenError | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: the question is whether it is TLS
    with context.wrap_socket(connection, do_handshake_on_connect=False) as secure:
        secure.do_handshake()
        return _problem(
            "SERVER_SPEAKS_TLS",
            f"the server at {access.address} speaks TLS alone: write grpcs://{access.address}, "
            "with ca if a private CA signed its certificate",
        )


def _secure(connection: socket.socket, host: str, access: Access) -> LightenError | None:
    context = ssl.create_default_context(cadata=access.ca or None)
    context.set_alpn_protocols(["h2"])
    if access.pair is not None:
        context.load_cert_chain(*access.pair, password="")
    try:
        with context.wrap_socket(
            connection, server_hostname=host, do_handshake_on_connect=False
        ) as secure:
            secure.do_handshake()
            return None if _is_taken(secure) else _certificate_refused(access)
    except ssl.SSLCertVerificationError as error:
        return _problem(
            "SERVER_NOT_TRUSTED",
            f"the server at {access.address} shows a certificate that cannot be trusted: "
            f"{error.verify_message}. If a private CA signed it, name the CA's file (ca, --ca or "
            "LIGHTEN_CA); the address has to be a name that stands in the certificate",
        )
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return _problem(
                "SERVER_SPEAKS_PLAIN_TEXT",
                f"the server at {access.address} speaks plain text, and TLS was asked for",
            )
        raise


def _is_taken(secure: ssl.SSLSocket) -> bool:
    """Whether the server goes on after the handshake. With TLS 1.3 it looks at the certificate of a
    client only then, and speaks first to one that it takes.
    """
    secure.settimeout(_VERDICT_SECONDS)
    try:
        return bool(secure.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _certificate_refused(access: Access) -> LightenError:
    return _problem(
        "CLIENT_CERTIFICATE_REFUSED",
        f"the server at {access.address} ends the connection after the handshake: it asks for a "
        "client certificate that it trusts; name yours with cert and key",
    )


def _problem(reason: str, message: str) -> LightenError:
    return FailedPrecondition(message, reason=reason)
