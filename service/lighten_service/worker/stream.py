"""The stream between a worker and the server, opened again whenever it breaks (asyncio)."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from lighten import v1 as pb
from lighten.v1.worker_service_pb2_grpc import WorkerServiceStub
from lighten_service.jobs.errors import Internal, LightenError, Unavailable
from lighten_service.jobs.ticket import Ticket
from lighten_service.worker.errors import from_rpc
from lighten_service.worker.outbox import Outbox
from lighten_service.worker.vitals import build, heartbeat, instance_id, inventory

if TYPE_CHECKING:
    from lighten.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub

    AttachCall = grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse]

_log = logging.getLogger(__name__)

PROTOCOL = 1

# The server is away, restarting, or lost this stream; anything else is its answer.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Times in seconds."""

    heartbeat: float = 5.0
    # How long a worker carries on without its server before it gives up.
    patience: float = 3600.0
    # Between two tries to reach the server: from the first to the second, doubling.
    shortest_pause: float = 0.1
    longest_pause: float = 5.0
    call_timeout: float = 60.0


class AttachStream:
    """Lives in one event loop; its public attributes may be read from any thread."""

    def __init__(
        self, ticket: Ticket, options: SessionOptions, on_stop: Callable[[], None]
    ) -> None:
        self.outbox = Outbox()
        self.job = ticket.job
        # Why the attempt shall stop, for the log; None: it shall go on.
        self.stop_reason: str | None = None
        # What `stopped` will say; None: nothing, because another attempt has the job.
        self.stopped_why: pb.Stopped.Why.ValueType | None = None
        self._ticket = ticket
        self._options = options
        self._on_stop = on_stop
        self._final: pb.AttachRequest | None = None
        # The newest step result, and whether this stream has told it.
        self._step: pb.StepResultRef | None = None
        self._step_told = False
        self._session_token = ""
        self._wake = asyncio.Event()
        self._welcomed: asyncio.Future[pb.Welcome] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._reached_at = 0.0
        # Why the server could not be reached the last time.
        self._obstacle = ""

    # --- called from the session, in the loop ---------------------------------------------------

    async def run(self) -> None:
        """Stay attached until the end is stored or the attempt is fenced.

        Raises:
            LightenError: the server refused the worker, or stayed away longer than ``patience``.
        """
        self._reached_at = asyncio.get_running_loop().time()
        pauses = self._pauses()
        try:
            while True:
                reached = self._reached_at
                try:
                    if await self._attach():
                        return
                except grpc.aio.AioRpcError as error:
                    self._give_up_unless_transient(error)
                    self._log_once(error)
                if self._reached_at != reached:
                    pauses = self._pauses()
                await asyncio.sleep(next(pauses))
        except LightenError as error:
            self._stop(f"{error.reason}: {error.message}", None)
            if not self._welcome_future.done():
                self._welcome_future.set_exception(error)
            raise

    async def welcome(self) -> pb.Welcome:
        """Return the first answer of the server."""
        return await self._welcome_future

    async def call(self, select: Callable[["WorkerServiceAsyncStub"], Any], request: Any) -> Any:
        """Call a unary method with the session token; tries again while the server is away.

        Raises:
            LightenError: what the server answered.
        """
        started = asyncio.get_running_loop().time()
        for pause in self._pauses():
            metadata = (("authorization", f"Bearer {self._session_token}"),)
            try:
                return await select(self._stub)(
                    request, metadata=metadata, timeout=self._options.call_timeout
                )
            except grpc.aio.AioRpcError as error:
                waited = asyncio.get_running_loop().time() - started
                if waited > self._options.patience or not self._may_succeed_later(error):
                    raise from_rpc(error) from None
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def step_finished(self, ref: pb.StepResultRef) -> None:
        """Tell of a step result after all events; again after a break, until there is a newer."""
        self._step, self._step_told = ref, False
        self._wake.set()

    def end(self, message: pb.AttachRequest) -> None:
        """Send ``finished``, ``failed`` or ``stopped`` after all events. The first one stays."""
        if self._final is None:
            self._final = message
        self._wake.set()

    def ends_with(self, message: pb.AttachRequest) -> bool:
        """Whether this is the last word."""
        return self._final is message

    def disrupt(self) -> None:
        """The process was asked to end. Said at once: the main thread may be long in coming."""
        if self.stop_reason is None:
            self._stop("the worker was asked to end (SIGTERM)", pb.Stopped.WHY_DISRUPTED)
        if self.stopped_why is not None:
            self.end(pb.AttachRequest(stopped=pb.Stopped(why=self.stopped_why)))

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    # --- one stream -----------------------------------------------------------------------------

    async def _attach(self) -> bool:
        """Open the stream and serve it to its end; return whether nothing is left to do."""
        metadata = (("authorization", f"Bearer {self._ticket.token}"),)
        call: AttachCall = self._stub.Attach(metadata=metadata)
        try:
            await call.write(pb.AttachRequest(hello=self._hello()))
            self._wake.clear()
            return await self._converse(call)
        finally:
            call.cancel()

    async def _converse(self, call: "AttachCall") -> bool:
        sender: asyncio.Task[None] | None = None
        try:
            async for response in call:
                self._reached_at = asyncio.get_running_loop().time()
                kind = response.WhichOneof("message")
                if kind == "welcome":
                    self._begin(response.welcome)
                    sender = asyncio.create_task(self._send(call))
                    sender.add_done_callback(lambda task: _end_with(task, call))
                elif kind == "ack":
                    self.outbox.acknowledge(response.ack.counter)
                elif kind == "session_token":
                    self._session_token = response.session_token.token
                elif kind == "cancel":
                    self._stop("the job is being cancelled", pb.Stopped.WHY_CANCELLED)
                elif kind == "fenced":
                    self._fence(response.fenced)
                    return True
            # The server closes the stream after it has stored the end. Without one it drains.
            return self._final is not None and sender is not None and sender.done()
        except asyncio.CancelledError:
            if sender is not None and (fault := _fault_of(sender)) is not None:
                raise Internal("SENDING_FAILED", f"the worker cannot speak: {fault}") from fault
            raise
        finally:
            if sender is not None:
                sender.cancel()

    async def _send(self, call: "AttachCall") -> None:
        """Send events, heartbeats, and the end once all events are on their way."""
        loop = asyncio.get_running_loop()
        beat_at = loop.time()
        while True:
            self._wake.clear()
            if loop.time() >= beat_at:
                await call.write(pb.AttachRequest(heartbeat=await asyncio.to_thread(heartbeat)))
                beat_at = loop.time() + self._options.heartbeat
            if (event := self.outbox.take()) is not None:
                await call.write(pb.AttachRequest(event=event))
            elif self._step is not None and not self._step_told:
                self._step_told = True
                await call.write(pb.AttachRequest(step_finished=self._step))
            elif self._final is not None:
                await call.write(self._final)
                return
            else:
                await self._until_woken(beat_at - loop.time())

    async def _until_woken(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), max(seconds, 0.0))
        except TimeoutError:
            return

    def _begin(self, welcome: pb.Welcome) -> None:
        self.outbox.rewind(welcome.acked_event)
        self._step_told = False
        self._session_token = welcome.session_token.token
        if welcome.cancel_requested:
            self._stop("the job is being cancelled", pb.Stopped.WHY_CANCELLED)
        if not self._welcome_future.done():
            self._welcome_future.set_result(welcome)

    def _fence(self, fenced: pb.Fenced) -> None:
        self._stop(f"attempt {fenced.current_attempt} has the job", None)
        if not self._welcome_future.done():
            self._welcome_future.cancel()

    def _stop(self, reason: str, why: pb.Stopped.Why.ValueType | None) -> None:
        self.stop_reason = reason
        self.stopped_why = why
        self._on_stop()

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            job=self._ticket.job,
            launch=self._ticket.launch,
            instance_id=instance_id(),
            protocol=PROTOCOL,
            build=build(),
            inventory=inventory(),
            last_event=self.outbox.last,
        )

    # --- the server's absence -------------------------------------------------------------------

    def _give_up_unless_transient(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() not in _TRANSIENT:
            raise from_rpc(error)
        away = asyncio.get_running_loop().time() - self._reached_at
        if away > self._options.patience:
            raise Unavailable(
                "SERVER_UNAVAILABLE", f"the server was out of reach for {away:.0f} seconds"
            )

    def _log_once(self, error: grpc.aio.AioRpcError) -> None:
        """Say why the server cannot be reached, once for each reason."""
        if (reason := error.details() or error.code().name) != self._obstacle:
            self._obstacle = reason
            _log.warning("%s cannot be reached: %s", self._ticket.server, reason)

    def _may_succeed_later(self, error: grpc.aio.AioRpcError) -> bool:
        # An expired token is renewed by the stream, or by the next welcome.
        return error.code() in _TRANSIENT or from_rpc(error).reason == "TOKEN_EXPIRED"

    def _pauses(self) -> Iterator[float]:
        pause = self._options.shortest_pause
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(pause * 2, self._options.longest_pause)

    @property
    def _welcome_future(self) -> "asyncio.Future[pb.Welcome]":
        if self._welcomed is None:
            self._welcomed = asyncio.get_running_loop().create_future()
        return self._welcomed

    @property
    def _stub(self) -> "WorkerServiceAsyncStub":
        if self._channel is None:
            options: list[tuple[str, int | str]] = [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.keepalive_time_ms", 30_000),
                # A welcome lists every file of the inputs.
                ("grpc.max_receive_message_length", 256 << 20),
            ]
            self._channel = self._open(options)
        return WorkerServiceStub(self._channel)

    def _open(self, options: list[tuple[str, int | str]]) -> grpc.aio.Channel:
        ticket = self._ticket
        if not ticket.ca:
            return grpc.aio.insecure_channel(ticket.server, options=options)
        if ticket.server_name:
            options.append(("grpc.ssl_target_name_override", ticket.server_name))
        credentials = grpc.ssl_channel_credentials(root_certificates=ticket.ca.encode())
        return grpc.aio.secure_channel(ticket.server, credentials, options=options)


def _end_with(sender: "asyncio.Task[None]", call: "AttachCall") -> None:
    """End a stream whose sender died: a worker that only listens would wait for ever."""
    if _fault_of(sender) is not None:
        call.cancel()


def _fault_of(sender: "asyncio.Task[None]") -> BaseException | None:
    """Return what a sender died of, unless its stream was broken, which the reader sees too."""
    if not sender.done() or sender.cancelled():
        return None
    error = sender.exception()
    broken = isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError)
    return None if broken else error
