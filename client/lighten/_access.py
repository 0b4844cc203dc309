"""How to reach a server and as whom: TLS, certificates, token."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from lighten.errors import InvalidArgument

_TLS = "grpcs://"
_PLAIN = "grpc://"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Access:
    """What a client needs for every call; never shows the token.

    Attributes:
        address: ``HOST:PORT``.
        credentials: of the channel; None: plain text.
        metadata: for every call.
        ca: certificates (PEM) to trust besides the system's when files move; may be empty.
        pair: files of the client certificate and its key, if there is one.
        opaque: the credentials are the caller's own, and nobody else knows what they trust.
    """

    address: str
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    ca: str = field(repr=False)
    pair: tuple[Path, Path] | None = None
    opaque: bool = False


def open_access(
    target: str,
    *,
    token: str | None,
    ca: PathLike | None,
    cert: PathLike | None,
    key: PathLike | None,
    credentials: grpc.ChannelCredentials | None,
) -> Access:
    """Read the files and check that all of it fits together.

    Raises:
        InvalidArgument: INVALID_TARGET, INVALID_CERTIFICATE (a file), INVALID_TOKEN, or
            TOKEN_NEEDS_TLS.
    """
    address = _address(target)
    given = credentials is not None or ca is not None or cert is not None or key is not None
    if given and target.startswith(_PLAIN):
        raise InvalidArgument(
            f"{target} means plain text, and certificates are given: write {_TLS}{address}",
            reason="INVALID_TARGET",
        )
    trusted, pair, opaque = _trusted(ca), _pair(cert, key), credentials is not None
    if credentials is None and (given or target.startswith(_TLS)):
        credentials = _credentials(trusted, pair)
    metadata = _metadata(token, address, secure=credentials is not None)
    return Access(address, credentials, metadata, trusted, pair, opaque)


def _address(target: str) -> str:
    address = target.removeprefix(_TLS).removeprefix(_PLAIN).rstrip("/")
    if (
        not address
        or address != "".join(address.split())
        or address.startswith(("http:", "https:"))
    ):
        raise InvalidArgument(
            f"{target!r} is not an address; write HOST:PORT, for example 127.0.0.1:8470, or "
            f"{_TLS}HOST:PORT for TLS",
            reason="INVALID_TARGET",
        )
    return address


def _pair(cert: PathLike | None, key: PathLike | None) -> tuple[Path, Path] | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InvalidArgument(
            "a client certificate needs both of cert and key", reason="INVALID_CERTIFICATE"
        )
    return Path(cert).expanduser(), Path(key).expanduser()


def _credentials(trusted: str, pair: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
    if pair is None:
        return grpc.ssl_channel_credentials(trusted.encode() or None)
    chain, secret = (_read(*each).encode() for each in zip(("cert", "key"), pair, strict=True))
    _check_pair(*pair)
    return grpc.ssl_channel_credentials(trusted.encode() or None, secret, chain)


def _check_pair(cert: Path, key: Path) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # An empty passphrase: without one OpenSSL would ask at the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidArgument(
            f"key: {key} is not the private key, without a passphrase, of {cert}: {error}",
            reason="INVALID_CERTIFICATE",
        ) from error


def _trusted(ca: PathLike | None) -> str:
    if ca is None:
        return ""
    # Imported where it is used, as everything that costs a start of the CLI time.
    import ssl

    # Bundles have comments in any language.
    pem = _read("ca", ca, errors="ignore")
    try:
        ssl.create_default_context().load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidArgument(
            f"ca: {ca} holds no certificates in PEM: {error}", reason="INVALID_CERTIFICATE"
        ) from error
    return pem


def _read(what: str, path: PathLike, errors: str = "strict") -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii", errors=errors)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no PEM file"
        message = f"{what}: cannot read {os.fspath(path)}: {why}"
        raise InvalidArgument(message, reason="INVALID_CERTIFICATE") from error


def _metadata(token: str | None, address: str, *, secure: bool) -> tuple[tuple[str, str], ...]:
    if not token:
        return ()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InvalidArgument(
            "the token has characters that no token has; was it copied whole?",
            reason="INVALID_TOKEN",
        )
    if not secure and not is_loopback(address):
        raise InvalidArgument(
            f"a token goes over TLS alone, and {address} is another machine in plain text: write "
            f"{_TLS}{address}, with ca if a private CA signed the server's certificate",
            reason="TOKEN_NEEDS_TLS",
        )
    return (("authorization", f"Bearer {token}"),)


def is_loopback(address: str) -> bool:
    """Whether an address is reached without leaving this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "unix") or address.startswith("unix:")
