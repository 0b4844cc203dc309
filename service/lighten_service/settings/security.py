"""Who may reach the server, and how they know that it is the one they mean."""

import ipaddress
from pathlib import Path

from lighten_service.settings.section import Section


class TlsSettings(Section):
    """Certificates: PEM files, read again whenever they change."""

    # The server's certificate, followed by those that signed it.
    cert: Path
    # Its private key, without a passphrase.
    key: Path
    # Callers have to show a certificate that one of these has signed, beside their token.
    client_ca: Path | None = None
    # What workers in pods are told to trust. None: `cert`, which has to end with a self-signed one.
    ca: Path | None = None

    def trusted(self) -> str:
        """Return the certificates (PEM) that workers are told to trust. Raises OSError."""
        # What is not ASCII stands between the certificates, as comments do in bundles.
        return (self.ca or self.cert).read_text(encoding="ascii", errors="ignore")


class AuthSettings(Section):
    """Callers have to show a bearer token."""

    # TOML file of the hashes of all tokens, read again whenever it changes.
    tokens: Path


def exposure(bind: str, tls: TlsSettings | None, auth: AuthSettings | None) -> str:
    """Return what is wrong with listening at an address, or an empty string."""
    missing = [name for name, given in (("[tls]", tls), ("[auth]", auth)) if given is None]
    if not missing or is_loopback(bind):
        return ""
    return (
        f'bind = "{bind}" lets other machines in, and there is no {" and no ".join(missing)}: set '
        "tls.cert, tls.key and auth.tokens, or bind 127.0.0.1, or set insecure_bind = true if the "
        "network keeps everyone else out"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether an address means every interface, and so none that a peer could call."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
