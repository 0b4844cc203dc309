"""Signed URLs of the local folder.

A URL is ``<base>/objects/<token>``; the token carries the grant and an HMAC-SHA256 over it, so
nothing in the URL can be changed and the server keeps no list of what it signed.
"""

import base64
import binascii
import hmac
import json
from dataclasses import astuple, dataclass
from typing import Literal

from lighten_service.jobs.errors import PermissionDenied
from lighten_service.jobs.ports import Audience, Clock

ROUTE_PREFIX = "/objects/"

Method = Literal["GET", "PUT"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What one URL allows.

    Attributes:
        method: GET covers HEAD.
        uri: canonical URI of the object.
        expires: Unix seconds.
        max_bytes: longest body of a PUT.
        upload_id: of a multi-part upload; empty for a whole object.
        part: number of the part; 0 for a whole object.
    """

    method: Method
    uri: str
    expires: int
    max_bytes: int = 0
    upload_id: str = ""
    part: int = 0


class UrlSigner:
    """Makes and checks tokens.

    Args:
        secret: key of the HMAC, at least 32 bytes; the same on every replica and after a restart.
        public_base: ``http(s)://host:port`` at which callers reach this server.
        worker_base: the same for workers.
    """

    def __init__(self, secret: bytes, public_base: str, worker_base: str, clock: Clock) -> None:
        if len(secret) < 32:
            raise ValueError("the secret of signed URLs needs at least 32 bytes")
        self._secret = secret
        self._bases = {"public": public_base.rstrip("/"), "worker": worker_base.rstrip("/")}
        self._clock = clock

    def expiry(self, seconds: int) -> int:
        """Return the Unix second at which a URL signed now for ``seconds`` expires."""
        return int(self._clock.now()) + seconds

    def url(self, grant: Grant, audience: Audience) -> str:
        """Return the URL that carries the grant."""
        payload = json.dumps(astuple(grant), ensure_ascii=False, separators=(",", ":")).encode()
        token = f"{_encode(payload)}.{_encode(self._mac(payload))}"
        return f"{self._bases[audience]}{ROUTE_PREFIX}{token}"

    def verify(self, token: str, method: str) -> Grant:
        """Return the grant of a token.

        Raises:
            PermissionDenied: reason OBJECT_FORBIDDEN (not signed by this server, or for another
                method) or URL_EXPIRED.
        """
        try:
            payload, mac = (_decode(part) for part in token.split("."))
        except (ValueError, binascii.Error) as error:
            raise _forbidden("the URL is not one that this server has signed") from error
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise _forbidden("the URL is not one that this server has signed")
        grant = Grant(*json.loads(payload))
        if method != grant.method and (method, grant.method) != ("HEAD", "GET"):
            raise _forbidden(f"the URL is good for {grant.method} alone")
        if self._clock.now() >= grant.expires:
            raise PermissionDenied("URL_EXPIRED", "the URL has expired; ask for a new one")
        return grant

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, "sha256")


def _forbidden(message: str) -> PermissionDenied:
    return PermissionDenied("OBJECT_FORBIDDEN", message)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not the canonical encoding")
    return data
