"""Bearer tokens of workers: HMAC-SHA256 over their claims.

A launch token says "this launch of this job" and is good for the first message of Attach alone,
until the launch ends. A session token names the attempt too, expires after minutes and is good for
everything else. Neither is stored; the store's record decides whether what they say still holds.
"""

import base64
import hashlib
import hmac
import json
import secrets
from binascii import Error as Base64Error
from dataclasses import asdict, dataclass
from typing import TypeVar

from lighten_service.jobs.errors import Unauthenticated

SECRET_NAME = "worker-tokens"  # noqa: S105  a name, not a secret


@dataclass(frozen=True, slots=True)
class LaunchClaims:
    """What a launch token says."""

    job_id: str
    launch: int


@dataclass(frozen=True, slots=True)
class SessionClaims:
    """What a session token says. ``expires``: Unix seconds."""

    job_id: str
    attempt: int
    launch: int
    instance_id: str
    expires: float


Claims = TypeVar("Claims", LaunchClaims, SessionClaims)


def make_secret() -> bytes:
    """Return a new key for ``JobStore.secret``."""
    return secrets.token_bytes(32)


class TokenSigner:
    """Makes and checks tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def launch(self, claims: LaunchClaims) -> str:
        """Return a launch token."""
        return self._sign("launch", asdict(claims))

    def session(self, claims: SessionClaims) -> str:
        """Return a session token."""
        return self._sign("session", asdict(claims))

    def verify_launch(self, token: str) -> LaunchClaims:
        """Return what a launch token says.

        Raises:
            Unauthenticated: reason INVALID_TOKEN.
        """
        return self._verify("launch", token, LaunchClaims)

    def verify_session(self, token: str, now: float) -> SessionClaims:
        """Return what a session token says.

        Raises:
            Unauthenticated: reason INVALID_TOKEN, or TOKEN_EXPIRED.
        """
        claims = self._verify("session", token, SessionClaims)
        if claims.expires <= now:
            raise Unauthenticated("TOKEN_EXPIRED", "the session token has expired; attach again")
        return claims

    def _sign(self, kind: str, claims: dict[str, object]) -> str:
        payload = _encode(json.dumps([kind, claims], separators=(",", ":")).encode())
        return f"{payload}.{_encode(self._mac(payload))}"

    def _verify(self, kind: str, token: str, claims: type[Claims]) -> Claims:
        payload, _, mac = token.partition(".")
        try:
            genuine = hmac.compare_digest(_decode(mac), self._mac(payload))
        except (Base64Error, ValueError):
            genuine = False
        # Read only what this key signed, so that the parts below are known to be well formed.
        signed_kind, fields = json.loads(_decode(payload)) if genuine else ("", {})
        if signed_kind != kind:
            raise Unauthenticated("INVALID_TOKEN", f"this call needs a {kind} token of the job")
        return claims(**fields)

    def _mac(self, payload: str) -> bytes:
        return hmac.digest(self._key, payload.encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
