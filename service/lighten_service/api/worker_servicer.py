"""WorkerService on grpc.aio: tokens in, messages out; the rules stand in ``jobs``."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import grpc

from lighten import v1 as pb
from lighten.v1.worker_service_pb2_grpc import WorkerServiceServicer
from lighten_service.api.authorization import bearer
from lighten_service.jobs.attempts import AttemptFenced
from lighten_service.jobs.errors import InvalidArgument, PermissionDenied, Unauthenticated
from lighten_service.jobs.lifecycle import Attached, Lifecycle
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.tokens import SessionClaims
from lighten_service.jobs.transfers import Transfers
from lighten_service.telemetry.logs import get_logger

# Requests of one stream that may wait; then the worker's sends wait.
MAX_WAITING = 512

Requests = AsyncIterator[pb.AttachRequest]
Responses = AsyncIterator[pb.AttachResponse]
Context = grpc.aio.ServicerContext[object, object]

log = get_logger(__name__)


class WorkerServicer(WorkerServiceServicer):
    """Workers' side of the server."""

    def __init__(self, lifecycle: Lifecycle, transfers: Transfers, metrics: JobMetrics) -> None:
        self._lifecycle = lifecycle
        self._transfers = transfers
        self._metrics = metrics

    async def Attach(self, request_iterator: Requests, context: Context) -> Responses:
        try:
            with self._refusals():
                claims = self._lifecycle.signer.verify_launch(_bearer(context))
                hello = await _hello(request_iterator)
                attached = await self._lifecycle.attach(hello, claims)
                yield pb.AttachResponse(welcome=attached.welcome)
                worker = AttachedWorker(self._lifecycle, attached)
                async for response in worker.serve(request_iterator):
                    yield response
        except AttemptFenced as fenced:
            yield pb.AttachResponse(fenced=pb.Fenced(current_attempt=fenced.current_attempt))

    async def SignUrls(self, request: pb.SignUrlsRequest, context: Context) -> pb.SignUrlsResponse:
        with self._refusals():
            transfers = await self._transfers.sign(self._claims(context), request.requests)
            return pb.SignUrlsResponse(transfers=transfers)

    async def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: Context
    ) -> pb.CompleteUploadResponse:
        with self._refusals():
            await self._transfers.complete(self._claims(context), request)
            return pb.CompleteUploadResponse()

    async def ListInputs(
        self, request: pb.ListInputsRequest, context: Context
    ) -> pb.ListInputsResponse:
        with self._refusals():
            return pb.ListInputsResponse(inputs=await self._transfers.inputs(self._claims(context)))

    def _claims(self, context: Context) -> SessionClaims:
        now = self._lifecycle.clock.now()
        return self._lifecycle.signer.verify_session(_bearer(context), now)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Count and log whoever shows a token that is none, is over, or is another's."""
        try:
            yield
        except (Unauthenticated, PermissionDenied) as error:
            self._metrics.worker_refused(error.reason)
            log.warning("worker refused", reason=error.reason, detail=error.message)
            raise


class AttachedWorker:
    """One stream after its welcome.

    Three tasks feed one queue of responses: the requests, changes of the job, and the renewal of
    the session token. The first one that ends closes the stream; its error is the stream's.
    """

    def __init__(self, lifecycle: Lifecycle, attached: Attached) -> None:
        self._lifecycle = lifecycle
        self._claims = attached.claims
        self._told_to_cancel = attached.welcome.cancel_requested
        # The worker has said its last word, which is being stored.
        self._ending = False
        self._requests: asyncio.Queue[pb.AttachRequest | None] = asyncio.Queue(MAX_WAITING)
        self._responses: asyncio.Queue[pb.AttachResponse | None] = asyncio.Queue()

    async def serve(self, requests: Requests) -> Responses:
        """Yield responses until the worker has said its last word, or the stream breaks.

        Raises:
            AttemptFenced: another attempt has the job, or the job is over.
            LightenError: a request was refused.
        """
        reader = asyncio.create_task(self._read(requests))
        tasks = [asyncio.create_task(run()) for run in (self._handle, self._watch, self._renew)]
        for task in tasks:
            task.add_done_callback(lambda _: self._responses.put_nowait(None))
        try:
            while (response := await self._responses.get()) is not None:
                yield response
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in (reader, *tasks):
                task.cancel()
            await asyncio.gather(reader, *tasks, return_exceptions=True)

    async def _read(self, requests: Requests) -> None:
        async for request in requests:
            await self._requests.put(request)
        await self._requests.put(None)

    async def _handle(self) -> None:
        """Store what the worker says; events that wait together share a transaction."""
        while True:
            batch = await self._next_batch()
            events = [item.event for item in batch if _is_event(item)]
            if events:
                acked = await self._lifecycle.append(self._claims, events)
                self._responses.put_nowait(pb.AttachResponse(ack=pb.Ack(counter=acked)))
            last = batch[-1]
            if last is None or (not _is_event(last) and await self._take(last)):
                return

    async def _next_batch(self) -> list[pb.AttachRequest | None]:
        """Return the events that wait, closed by whatever follows them."""
        batch = [await self._requests.get()]
        while _is_event(batch[-1]) and not self._requests.empty():
            batch.append(self._requests.get_nowait())
        return batch

    async def _take(self, request: pb.AttachRequest) -> bool:
        """Store one message that is no event; return whether it was the last."""
        kind = request.WhichOneof("message")
        if kind == "heartbeat":
            await self._lifecycle.heartbeat(self._claims, request.heartbeat)
            return False
        if kind == "step_finished":
            await self._lifecycle.finish_step(self._claims, request.step_finished)
            return False
        self._ending = True
        match kind:
            case "finished":
                await self._lifecycle.finish(self._claims, request.finished.manifest_sha256)
            case "failed":
                await self._lifecycle.fail(self._claims, request.failed.error)
            case "stopped":
                await self._lifecycle.stopped(self._claims, request.stopped.why)
            case _:
                raise InvalidArgument(
                    "UNEXPECTED_MESSAGE", f"{kind or 'an empty message'} cannot follow hello"
                )
        return True

    async def _watch(self) -> None:
        """Tell the worker that its job is being cancelled, or is another's."""
        with self._lifecycle.stream(self._claims.job_id) as changed:
            while True:
                changed.clear()
                try:
                    record = await self._lifecycle.current(self._claims)
                except AttemptFenced:
                    if not self._ending:
                        raise
                    # Its own last word ended the attempt: the stream closes without a fence.
                    await asyncio.Event().wait()
                    return
                cancelling = record.job.state == pb.JOB_STATE_CANCELLING
                if cancelling and not self._told_to_cancel:
                    self._told_to_cancel = True
                    self._responses.put_nowait(pb.AttachResponse(cancel=pb.Cancel()))
                await changed.wait()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lifecycle.options.session_seconds / 2)
            token = self._lifecycle.session_token(self._claims)
            self._responses.put_nowait(pb.AttachResponse(session_token=token))


def _is_event(request: pb.AttachRequest | None) -> TypeGuard[pb.AttachRequest]:
    return request is not None and request.HasField("event")


async def _hello(requests: Requests) -> pb.Hello:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "hello":
        raise InvalidArgument("HELLO_MISSING", "the first message must be hello")
    return first.hello


def _bearer(context: Context) -> str:
    return bearer(context.invocation_metadata() or ())
