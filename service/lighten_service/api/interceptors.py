"""What happens around every RPC: request id, logs, metrics, and errors as statuses."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import grpc
from structlog.contextvars import bind_contextvars

from lighten_service.api.authorization import Guard, Recheck
from lighten_service.api.errors import code_of, retry_pushback, status_of
from lighten_service.jobs.errors import Internal, LightenError, Unavailable
from lighten_service.telemetry.logs import get_logger
from lighten_service.telemetry.metrics import Metrics, RpcKind

REQUEST_ID = "x-request-id"

_STATUS_DETAILS = "grpc-status-details-bin"
# Calls that have arrived, but not reached their handler, get so long to do it.
_SETTLE_SECONDS = 0.1
_PROBES = "grpc.health.v1.Health/"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # takes no parameters at run time

log = get_logger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call a request id, counts it, lets the guard decide on it, and turns what it
    raises into a status.

    A LightenError becomes its status with rich details. Anything else is a fault of ours: the
    caller gets INTERNAL with a reference, and the traceback goes to the log under it.
    """

    def __init__(self, metrics: Metrics, guard: Guard | None = None) -> None:
        self._metrics = metrics
        self._guard = guard
        self._streams: set[asyncio.Task[Any]] = set()
        self._unary_calls = 0
        self._draining = asyncio.Event()

    async def drain(self, grace_seconds: float) -> None:
        """Answer new calls and end every stream with UNAVAILABLE, so that callers connect again;
        return when the unary calls under way have ended, or the grace period has.
        """
        self._draining.set()
        for task in self._streams:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await asyncio.sleep(_SETTLE_SECONDS)
                while self._unary_calls:
                    await asyncio.sleep(_SETTLE_SECONDS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        method = handler_call_details.method.lstrip("/")
        wrap = self._streaming if handler.response_streaming else self._unary
        return wrap(handler, method)

    def _unary(self, handler: Handler, method: str) -> Handler:
        inner: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def call(request: Any, context: Context) -> Any:
            async with _Call(self._metrics, method, "unary", context):
                if self._draining.is_set() and not method.startswith(_PROBES):
                    raise _draining()
                self._check(method, request, context)
                self._unary_calls += 1
                try:
                    return await inner(request, context)
                finally:
                    self._unary_calls -= 1

        make: Any = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return cast(Handler, make(call, *_codecs(handler)))

    def _streaming(self, handler: Handler, method: str) -> Handler:
        inner: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with _Call(self._metrics, method, "stream", context), self._stream():
                recheck = self._check(method, request, context)
                responses = inner(request, context)
                if not hasattr(responses, "__aiter__"):
                    await responses  # a handler that writes to the context instead of yielding
                    return
                # Streams that callers watch; a worker's stream goes both ways and is none.
                watching = not handler.request_streaming
                with self._metrics.watch_stream(method) if watching else nullcontext():
                    async for response in responses:
                        recheck()
                        yield response

        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return cast(Handler, make(call, *_codecs(handler)))

    def _check(self, method: str, request: Any, context: Context) -> Recheck:
        if self._guard is None:
            return lambda: None
        return self._guard.check(method, context.invocation_metadata() or (), request)

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        """Let ``drain`` interrupt what runs inside."""
        if self._draining.is_set():
            raise _draining()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  gRPC runs each call in a task
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._draining.is_set():
                raise
            task.uncancel()
            raise _draining() from None
        finally:
            self._streams.discard(task)


class _Call:
    """One RPC from its arrival to its end."""

    def __init__(self, metrics: Metrics, method: str, kind: RpcKind, context: Context) -> None:
        self._metrics = metrics
        self._method = method
        self._kind: RpcKind = kind
        self._context = context
        self._request_id = ""
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._began = time.monotonic()
        self._request_id = _request_id(self._context)
        # gRPC runs each call in a task, and so in a context, of its own: nothing to take back.
        bind_contextvars(request_id=self._request_id)
        self._context.set_trailing_metadata(((REQUEST_ID, self._request_id),))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._count("OK")
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._count("CANCELLED")
        elif isinstance(error, grpc.aio.AbortError):
            self._count(_code_name(self._context))
        elif isinstance(error, LightenError):
            await self._abort(error)
        elif isinstance(error, Exception):
            await self._abort(self._fault(error))

    def _fault(self, error: Exception) -> Internal:
        reference = secrets.token_hex(8)
        log.error("call failed", method=self._method, reference=reference, exc_info=error)
        return Internal(
            "INTERNAL",
            f"the server made a mistake; its log has the details under reference {reference}",
            metadata={"reference": reference},
        )

    async def _abort(self, error: LightenError) -> None:
        code, status = code_of(error), status_of(error)
        self._count(code.name)
        await self._context.abort(
            code,
            status.message,
            (
                (REQUEST_ID, self._request_id),
                (_STATUS_DETAILS, status.SerializeToString()),
                *retry_pushback(error),
            ),
        )

    def _count(self, code: str) -> None:
        seconds = time.monotonic() - self._began
        self._metrics.rpc_finished(self._method, self._kind, code, seconds)


def _draining() -> Unavailable:
    return Unavailable("SERVER_DRAINING", "the server is stopping; connect again")


def _codecs(handler: Handler) -> tuple[Any, Any]:
    return handler.request_deserializer, handler.response_serializer


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _SAFE_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _code_name(context: Context) -> str:
    # gRPC keeps the number; its stubs say StatusCode.
    code: Any = context.code()
    return next((item.name for item in grpc.StatusCode if code in (item, item.value[0])), "UNKNOWN")
