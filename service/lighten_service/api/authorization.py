"""Whether a call may go on: its token, its project, its role. The only place that decides it."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from structlog.contextvars import bind_contextvars

from lighten_service.api.access import ACCESS, Access
from lighten_service.api.principals import Principal, Principals, Role
from lighten_service.api.reload import Reloaded
from lighten_service.jobs.errors import (
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from lighten_service.jobs.names import job_not_found, parse_job
from lighten_service.jobs.ports import Clock
from lighten_service.telemetry.logs import get_logger
from lighten_service.telemetry.metrics import Metrics

Metadata = Iterable[tuple[str, str | bytes]]
Recheck = Callable[[], None]

_OPTIMIZATION: Final = "lighten.v1.OptimizationService/"
# Probes have no token; workers have tokens of their own, which their servicer checks.
_OPEN: Final = ("grpc.health.v1.Health/", "lighten.v1.WorkerService/")
_PROJECT: Final = re.compile(r"projects/([^/]*)")
_LOGGED_CHARACTERS: Final = 256

log = get_logger(__name__)


class Guard:
    """Checks every call of a server whose callers have tokens."""

    def __init__(self, principals: Reloaded[Principals], metrics: Metrics, clock: Clock) -> None:
        self._principals = principals
        self._metrics = metrics
        self._clock = clock

    def check(self, method: str, metadata: Metadata, request: Any) -> Recheck:
        """Let a call pass, and put its principal on its log lines.

        Args:
            method: ``package.Service/Method``.
            request: its message; of a stream of requests nothing is looked at.

        Returns:
            What to call before each message of a stream: it raises the same errors once the token
            is taken back or expires.

        Raises:
            Unauthenticated: TOKEN_MISSING, INVALID_TOKEN, TOKEN_EXPIRED.
            NotFound: what the request names is another project's, and might as well not exist.
            PermissionDenied: ROLE_TOO_LOW.
        """
        if method.startswith(_OPEN):
            return _nothing
        seen = self._principals.value
        principal = self._decide(method, metadata, request)

        def recheck() -> None:
            nonlocal seen, principal
            current = self._principals.value
            if current is not seen or self._clock.now() >= principal.expires:
                seen, principal = current, self._decide(method, metadata, request)

        return recheck

    def _decide(self, method: str, metadata: Metadata, request: Any) -> Principal:
        try:
            principal = self._principals.value.identify(bearer(metadata), self._clock.now())
            bind_contextvars(principal=principal.name)
            # Reflection tells what the public contract tells: any token will do.
            if method.startswith(_OPTIMIZATION):
                _authorize(principal, method.removeprefix(_OPTIMIZATION), request)
        except (Unauthenticated, NotFound, PermissionDenied) as error:
            self._metrics.auth_refused(error.reason)
            log.info("refused", method=method, reason=error.reason)
            raise
        return principal


def _nothing() -> None:
    """Stands for a check that always passes."""


def bearer(metadata: Metadata) -> str:
    """Return the token of ``authorization: Bearer TOKEN``. Raises Unauthenticated."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    raise Unauthenticated(
        "TOKEN_MISSING",
        "this call needs a token: send metadata authorization: Bearer TOKEN (the SDK and the CLI "
        "take it from LIGHTEN_TOKEN or the configuration file)",
    )


def _authorize(principal: Principal, rpc: str, request: Any) -> None:
    access = ACCESS[rpc]
    if access.resource:
        _require_project(principal, access, getattr(request, access.resource))
    if principal.role < access.role:
        raise PermissionDenied(
            "ROLE_TOO_LOW",
            f'{rpc} needs the role {access.role.name.lower()}, and the token "{principal.name}" '
            f"has {principal.role.name.lower()}",
            metadata={"needed_role": access.role.name.lower()},
        )
    if access.role > Role.VIEWER:
        # What is no name is refused further on, and may be megabytes.
        log.info(
            "allowed", rpc=rpc, resource=getattr(request, access.resource)[:_LOGGED_CHARACTERS]
        )


def _require_project(principal: Principal, access: Access, name: str) -> None:
    """Raise NotFound for another project's name. One that is no name is refused further on."""
    match = _PROJECT.match(name)
    if match is None or principal.may_see(match[1]):
        return
    if "/jobs/" in name:
        raise job_not_found(parse_job(name, access.resource).job_id)
    raise NotFound("PROJECT_NOT_FOUND", f"there is no project {name}, or this token is not for it")
