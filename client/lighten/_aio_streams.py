"""Watches as asynchronous iterators."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc

from lighten import v1 as pb
from lighten._watch import JobsWatchState, JobWatchState, StreamBroken
from lighten.errors import LightenError

Response = TypeVar("Response", covariant=True)


class ResponseStream(Protocol[Response]):
    """The call of a streaming RPC."""

    def __aiter__(self) -> AsyncIterator[Response]: ...

    def cancel(self) -> Any: ...


# Turns what broke a stream into an error of the SDK.
Typed = Callable[[grpc.RpcError | StreamBroken], Awaitable[LightenError]]
# Opens a stream with a request and a timeout in seconds.
OpenJob = Callable[[pb.WatchJobRequest, float | None], ResponseStream[pb.WatchJobResponse]]
OpenJobs = Callable[[pb.WatchJobsRequest, float | None], ResponseStream[pb.WatchJobsResponse]]


class JobWatch(AsyncIterator[pb.JobEvent]):
    """Events of one job, each once and in order, over as many connections as it takes.

    Attributes:
        snapshot: the job as the server last told it whole; None until the first event.
        last_sequence: sequence of the newest event seen: what a later watch resumes from.
    """

    def __init__(self, typed: Typed, open_stream: OpenJob, state: JobWatchState) -> None:
        self._typed = typed
        self._open = open_stream
        self._state = state
        self._events = self._read()

    @property
    def snapshot(self) -> pb.WatchSnapshot | None:
        return self._state.snapshot

    @property
    def last_sequence(self) -> int:
        return self._state.last_sequence

    async def __anext__(self) -> pb.JobEvent:
        return await anext(self._events)

    async def aclose(self) -> None:
        """End the stream; the job goes on."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[pb.JobEvent, None]:
        state = self._state
        while not state.finished():
            call = self._open(state.request(), state.timeout())
            try:
                async for response in call:
                    event = state.receive(response)
                    if event is not None:
                        yield event
                    if state.finished():
                        return
                state.ended()
            except (grpc.RpcError, StreamBroken) as error:
                await asyncio.sleep(state.broken(await self._typed(error)))
            finally:
                call.cancel()


async def watch_jobs(
    typed: Typed, open_stream: OpenJobs, state: JobsWatchState
) -> AsyncGenerator[pb.WatchJobsResponse, None]:
    """Yield matches and changes for ever; every reconnect tells all matches again."""
    while True:
        call = open_stream(state.request(), state.timeout())
        try:
            async for response in call:
                for item in state.receive(response):
                    yield item
            state.ended()
        except (grpc.RpcError, StreamBroken) as error:
            await asyncio.sleep(state.broken(await typed(error)))
        finally:
            call.cancel()
