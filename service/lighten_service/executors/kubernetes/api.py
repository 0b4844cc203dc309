"""Requests to the API server as plain JSON.

The client's own models would cost too much by the thousand.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Literal

import aiohttp
from kubernetes_asyncio.client.exceptions import ApiException

from lighten_service.executors.kubernetes.connection import Connection
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics

Verb = Literal["create", "get", "list", "watch", "delete"]
Json = dict[str, Any]

_METHODS: Mapping[Verb, str] = {
    "create": "POST",
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "delete": "DELETE",
}
_GROUPS = {
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "events": "/api/v1",
}
_UNAUTHORIZED = 401
_GONE = 410
_TOO_MANY = 429
_SERVER_FAULTS = 500


class ApiError(Exception):
    """The API server refused.

    Attributes:
        code: HTTP status.
        causes: reasons of the details.
        retry_after: seconds to wait, where the server says so.
    """

    def __init__(self, code: int, body: Mapping[str, Any], retry_after: float = 0.0) -> None:
        self.code = code
        self.message = str(body.get("message") or f"HTTP {code}")
        details = body.get("details") or {}
        self.causes = [str(cause.get("reason", "")) for cause in details.get("causes") or ()]
        self.retry_after = retry_after or float(details.get("retryAfterSeconds") or 0)
        super().__init__(self.message)

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed after a pause, whatever it asks for."""
        return self.code in (_UNAUTHORIZED, _TOO_MANY) or self.code >= _SERVER_FAULTS

    @property
    def gone(self) -> bool:
        """Whether a resource version is no good any more: too old, or of a store that was lost."""
        return self.code == _GONE or "ResourceVersionTooLarge" in self.causes


class ApiUnreachable(Exception):
    """No answer: no connection, a broken one, or too late."""


class Api:
    """One namespace of one API server. Every request is counted."""

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        metrics: KubernetesMetrics,
        *,
        timeout: float,
    ) -> None:
        self.namespace = namespace
        self._connection = connection
        self._metrics = metrics
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def create(self, resource: str, body: Json, **parameters: str) -> Json:
        """POST an object; unknown fields are refused. Raises ApiError, ApiUnreachable."""
        query = {"fieldValidation": "Strict", **parameters}
        return await self._json("create", resource, self._path(resource), query, body)

    async def get(self, resource: str, name: str) -> Json:
        """GET an object. Raises ApiError, ApiUnreachable."""
        return await self._json("get", resource, self._path(resource, name), {})

    async def list(self, resource: str, *, group: str = "", **parameters: str) -> Json:
        """GET one page of a list. Raises ApiError, ApiUnreachable."""
        return await self._json("list", resource, self._path(resource, group=group), parameters)

    async def delete(self, resource: str, name: str, **options: Any) -> None:
        """DELETE an object. Raises ApiError, ApiUnreachable."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", **options}
        await self._json("delete", resource, self._path(resource, name), {}, body)

    async def discover(self, group: str) -> Json:
        """GET what versions an API group has. Raises ApiError, ApiUnreachable."""
        return await self._json("get", "apigroups", f"/apis/{group}", {})

    async def log(self, pod: str, container: str, *, lines: int, limit_bytes: int) -> bytes:
        """GET the last lines of a container. Raises ApiError, ApiUnreachable."""
        query = {
            "container": container,
            "tailLines": str(lines),
            "limitBytes": str(limit_bytes),
        }
        path = self._path("pods", pod) + "/log"
        async with self._send("get", "pods/log", path, query, None, self._timeout) as response:
            return await response.read()

    async def watch(
        self, resource: str, *, group: str = "", silence: float, **parameters: str
    ) -> AsyncGenerator[Json, None]:
        """Yield the events of a watch until the server ends it.

        ``silence``: seconds without a word after which the connection counts as broken.

        Raises:
            ApiError: refused, or 410 in the middle.
            ApiUnreachable: the connection broke.
        """
        timeout = aiohttp.ClientTimeout(sock_connect=10, sock_read=silence)
        path, query = self._path(resource, group=group), {"watch": "1", **parameters}
        async with self._send("watch", resource, path, query, None, timeout) as response:
            async for line in response.content:
                event: Json = json.loads(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise ApiError(int(status.get("code") or _SERVER_FAULTS), status)
                yield event

    async def _json(
        self,
        verb: Verb,
        resource: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None = None,
    ) -> Json:
        async with self._send(verb, resource, path, query, body, self._timeout) as response:
            answer: Json = json.loads(await response.read())
            return answer

    @asynccontextmanager
    async def _send(
        self,
        verb: Verb,
        resource: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        began, code = monotonic(), None
        counted = False
        try:
            response: aiohttp.ClientResponse = await self._connection.rest.request(
                _METHODS[verb],
                self._connection.host + path,
                query_params=dict(query),
                headers={"Accept": "application/json", **await self._connection.headers()},
                body=body,
                _preload_content=False,
                _request_timeout=timeout,
            )
            code = response.status
            self._metrics.request_finished(verb, resource, code, monotonic() - began)
            counted = True
            async with response:
                if not response.ok:
                    raise await _refusal(response)
                yield response
        except ApiError as error:
            if error.code == _UNAUTHORIZED:
                await self._connection.renew()
            raise
        except (aiohttp.ClientError, ApiException, OSError, TimeoutError, ValueError) as error:
            if not counted:
                self._metrics.request_finished(verb, resource, None, monotonic() - began)
            raise ApiUnreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _path(self, resource: str, name: str = "", *, group: str = "") -> str:
        prefix = group or _GROUPS[resource]
        path = f"{prefix}/namespaces/{self.namespace}/{resource}"
        return f"{path}/{name}" if name else path


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    try:
        body = json.loads(await response.read())
    except ValueError:
        body = {}
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if after.isdigit() else 0.0
    return ApiError(response.status, body if isinstance(body, dict) else {}, retry_after)
