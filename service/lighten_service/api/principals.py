"""Who calls: the principals of the token file.

    [[token]]
    name = "ci"
    sha256 = "..."          # of the token, hexadecimal
    project = "vision"      # or "*" for every project
    role = "submitter"      # viewer, submitter or admin
    expires = 2027-06-30    # optional; a day ends with it, in UTC

The file holds hashes, so that who reads it cannot call. Plain SHA-256 is enough: a token is 256
random bits, which nobody guesses however fast the hash; a slow one is for passwords, and would cost
every call.
"""

import hashlib
import hmac
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import IntEnum
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, ValidationError

from lighten_service.jobs.errors import Unauthenticated
from lighten_service.settings import ProjectKey, SettingsError
from lighten_service.settings.section import Section

EVERY_PROJECT = "*"

_DAY = 86_400.0


class Role(IntEnum):
    """What a token is good for; each role includes those before it."""

    VIEWER = 1
    SUBMITTER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. ``project``: its own, or ``*``; ``expires``: Unix seconds."""

    name: str
    project: str
    role: Role
    expires: float

    def may_see(self, project: str) -> bool:
        return self.project in (EVERY_PROJECT, project)


class _Row(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    project: ProjectKey
    role: Literal["viewer", "submitter", "admin"]
    # Strict: neither a number of days nor a date in quotes is taken for an instant.
    expires: Annotated[datetime, Strict()] | Annotated[date, Strict()] | None = None


class _File(Section):
    token: tuple[_Row, ...] = ()


class Principals:
    """Every token of one file."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._known = [(bytes.fromhex(row.sha256), _principal(row)) for row in rows]

    def identify(self, token: str, now: float) -> Principal:
        """Return who has a token. Takes as long for a wrong token as for a right one.

        Raises:
            Unauthenticated: INVALID_TOKEN, or TOKEN_EXPIRED.
        """
        digest = hashlib.sha256(token.encode()).digest()
        found: Principal | None = None
        for known, principal in self._known:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthenticated(
                "INVALID_TOKEN", "this server does not know the token; ask its operator for one"
            )
        if now >= found.expires:
            raise Unauthenticated(
                "TOKEN_EXPIRED",
                f'the token "{found.name}" has expired; ask the server\'s operator for a new one',
            )
        return found


def read_principals(path: Path) -> Principals:
    """Read a token file. Raises SettingsError, which never quotes what the file holds."""
    try:
        rows = _File(**tomllib.loads(path.read_text(encoding="utf-8"))).token
    except OSError as error:
        raise SettingsError(f"auth.tokens: cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors(include_input=False)
        )
        raise SettingsError(f"auth.tokens: {path}: {wrong}") from error
    except ValueError as error:
        raise SettingsError(f"auth.tokens: {path} is no TOML: {error}") from error
    for key in ("name", "sha256"):
        values = [getattr(row, key) for row in rows]
        if len(set(values)) < len(values):
            raise SettingsError(f"auth.tokens: {path}: two tokens have the same {key}")
    return Principals(rows)


def _principal(row: _Row) -> Principal:
    return Principal(row.name, row.project, Role[row.role.upper()], _instant(row.expires))


def _instant(expires: datetime | date | None) -> float:
    """Return Unix seconds. A day ends with itself; a time without a zone is in UTC."""
    if expires is None:
        return inf
    if not isinstance(expires, datetime):
        return datetime.combine(expires, time(), UTC).timestamp() + _DAY
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()
