"""Serves the signed URLs of the local folder over HTTP."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import ClientPayloadError, web

from lighten_service.jobs.errors import (
    InvalidArgument,
    LightenError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.local_files import OpenObject
from lighten_service.objects.signing import ROUTE_PREFIX, Grant

_STATUS: dict[type[LightenError], int] = {
    InvalidArgument: 400,
    PermissionDenied: 403,
    NotFound: 404,
    ResourceExhausted: 413,
    OutOfRange: 416,
    Unavailable: 503,
}
_CHUNK_BYTES = 256 * 1024
# Longest silence within the body of a PUT.
_IDLE_SECONDS = 60.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def object_routes(store: LocalObjectStore) -> list[web.RouteDef]:
    """Return the routes to mount on an ``aiohttp.web.Application``.

    Answers: 200 and 206 with ``ETag``; errors as JSON ``{"reason", "message"}``: 400 (name or
    part), 403 (OBJECT_FORBIDDEN, URL_EXPIRED), 404, 413 (OBJECT_TOO_LARGE), 416, 503.
    """

    async def get(request: web.Request) -> web.StreamResponse:
        grant = store.signer.verify(request.match_info["token"], request.method)
        async with await store.open(grant.uri) as file:
            return await _send(request, file)

    async def put(request: web.Request) -> web.StreamResponse:
        grant = store.signer.verify(request.match_info["token"], request.method)
        chunks = _body(request, grant)
        if grant.upload_id:
            info = await store.write_part(grant.uri, grant.upload_id, grant.part, chunks)
        else:
            info = await store.write(grant.uri, chunks)
        return web.Response(headers={"ETag": f'"{info.etag}"'})

    path = ROUTE_PREFIX + "{token}"
    return [web.get(path, _with_json_errors(get)), web.put(path, _with_json_errors(put))]


async def _send(request: web.Request, file: OpenObject) -> web.StreamResponse:
    size = file.info.bytes
    asked = _asked_range(request, size, file.info.etag)
    start, end = asked or (0, size)
    response = web.StreamResponse(status=206 if asked else 200)
    response.content_type = "application/octet-stream"
    response.content_length = end - start
    response.headers["ETag"] = f'"{file.info.etag}"'
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if asked:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    await response.prepare(request)
    if request.method != "HEAD":
        try:
            async for chunk in file.chunks(start, end - start):
                await response.write(chunk)
        except LightenError as error:
            # The status is sent; a broken connection alone can tell of the failure.
            raise ConnectionAbortedError(error.message) from error
    await response.write_eof()
    return response


def _asked_range(request: web.Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return (start, end) of a Range header (RFC 9110, 14.2), or None for the whole object.

    More than one range, and units other than bytes, are answered with the whole.
    """
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    condition = request.headers.get("If-Range")
    if match is None or match[0] == "bytes=-" or condition not in (None, f'"{etag}"'):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= end:
        raise OutOfRange(
            "RANGE_NOT_SATISFIABLE", f"the object has {size} bytes", metadata={"bytes": str(size)}
        )
    return start, end


async def _body(request: web.Request, grant: Grant) -> AsyncIterator[bytes]:
    """Yield the body of a PUT, which may not be longer than the URL allows."""
    too_large = ResourceExhausted(
        "OBJECT_TOO_LARGE", f"this URL takes at most {grant.max_bytes} bytes"
    )
    if (request.content_length or 0) > grant.max_bytes:
        raise too_large
    received = 0
    try:
        while chunk := await _next(request):
            received += len(chunk)
            if received > grant.max_bytes:
                raise too_large
            yield chunk
    except (ClientPayloadError, ConnectionError, TimeoutError) as error:
        raise InvalidArgument("BODY_INCOMPLETE", "the body ended early or stalled") from error


async def _next(request: web.Request) -> bytes:
    async with asyncio.timeout(_IDLE_SECONDS):
        return await request.content.read(_CHUNK_BYTES)


def _with_json_errors(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except LightenError as error:
            response = web.json_response(
                {"reason": error.reason, "message": error.message}, status=_status(error)
            )
            if isinstance(error, OutOfRange):
                response.headers["Content-Range"] = f"bytes */{error.metadata['bytes']}"
            return response

    return handle


def _status(error: LightenError) -> int:
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
