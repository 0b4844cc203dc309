"""Watches as plain iterators."""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from lighten import v1 as pb
from lighten._watch import JobsWatchState, JobWatchState, StreamBroken
from lighten.errors import LightenError

Response = TypeVar("Response", covariant=True)


class ResponseStream(Protocol[Response]):
    """The call of a streaming RPC."""

    def __iter__(self) -> Iterator[Response]: ...

    def cancel(self) -> Any: ...


# Turns what broke a stream into an error of the SDK.
Typed = Callable[[grpc.RpcError | StreamBroken], LightenError]
# Opens a stream with a request and a timeout in seconds.
OpenJob = Callable[[pb.WatchJobRequest, float | None], ResponseStream[pb.WatchJobResponse]]
OpenJobs = Callable[[pb.WatchJobsRequest, float | None], ResponseStream[pb.WatchJobsResponse]]


class JobWatch(Iterator[pb.JobEvent]):
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

    def __next__(self) -> pb.JobEvent:
        return next(self._events)

    def close(self) -> None:
        """End the stream; the job goes on."""
        self._events.close()

    def _read(self) -> Generator[pb.JobEvent, None, None]:
        state = self._state
        while not state.finished():
            call = self._open(state.request(), state.timeout())
            try:
                for response in call:
                    event = state.receive(response)
                    if event is not None:
                        yield event
                    if state.finished():
                        return
                state.ended()
            except (grpc.RpcError, StreamBroken) as error:
                time.sleep(state.broken(self._typed(error)))
            finally:
                call.cancel()


def watch_jobs(
    typed: Typed, open_stream: OpenJobs, state: JobsWatchState
) -> Generator[pb.WatchJobsResponse, None, None]:
    """Yield matches and changes for ever; every reconnect tells all matches again."""
    while True:
        call = open_stream(state.request(), state.timeout())
        try:
            for response in call:
                yield from state.receive(response)
            state.ended()
        except (grpc.RpcError, StreamBroken) as error:
            time.sleep(state.broken(typed(error)))
        finally:
            call.cancel()
