"""The worker's side of WorkerService, as the main thread sees it.

The network lives in a thread of its own with its own event loop, so that AIMET never waits for it
and heartbeats go on while AIMET computes. Only the calls that need an answer block the caller,
and they end with Cancelled as soon as the attempt shall stop.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

from lighten import v1 as pb
from lighten_service.jobs.ticket import Ticket
from lighten_service.worker.context import Cancelled
from lighten_service.worker.stream import AttachStream, SessionOptions

T = TypeVar("T")

# SignUrlsRequest.requests takes no more.
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one attempt has to do.

    ``job``: Job.name; ``attempt_uri`` ends with ``/``; ``resume_from``: where an earlier attempt
    got to.
    """

    job: str
    attempt: int
    resolved_spec: pb.JobSpec
    inputs: tuple[pb.ResolvedInput, ...]
    attempt_uri: str
    resume_from: pb.StepResultRef | None = None


class Session:
    """Joins this process with its job. Use from the main thread; ``stop`` is safe anywhere.

    Every method that calls the server tries again while it is away, and raises ``LightenError``
    with the server's reason where it refuses, ``Cancelled`` where the attempt shall stop.
    """

    def __init__(self, ticket: Ticket, options: SessionOptions | None = None) -> None:
        # Certificates to trust for signed URLs beside the system's; empty for none.
        self.ca = ticket.ca
        self._loop = asyncio.new_event_loop()
        self._stream = AttachStream(ticket, options or SessionOptions(), self._abort_calls)
        self._calls: set[Future[Any]] = set()
        self._run: Future[None] = Future()
        self._thread = Thread(target=self._loop.run_forever, name="session", daemon=True)

    def start(self) -> Assignment:
        """Attach and return the work.

        Raises:
            LightenError: the server refused the worker, or stayed away too long.
            Cancelled: the attempt is fenced or cancelled already.
        """
        self._thread.start()
        self._run = asyncio.run_coroutine_threadsafe(self._stream.run(), self._loop)
        welcome = self._call(self._stream.welcome())
        self.check()
        return Assignment(
            job=self._stream.job,
            attempt=welcome.attempt,
            resolved_spec=welcome.resolved_spec,
            inputs=tuple(welcome.inputs),
            attempt_uri=welcome.attempt_uri,
            resume_from=welcome.resume_from if welcome.HasField("resume_from") else None,
        )

    def send(self, event: pb.JobEvent) -> None:
        """Queue an event; never blocks on the network."""
        self._stream.outbox.add(event)
        self._loop.call_soon_threadsafe(self._stream.wake)

    def step_finished(self, ref: pb.StepResultRef) -> None:
        """Tell of a step result that is uploaded whole; never blocks on the network."""
        self._loop.call_soon_threadsafe(self._stream.step_finished, ref)

    @property
    def backlog(self) -> int:
        """Events that the server has not acknowledged."""
        return len(self._stream.outbox)

    def check(self) -> None:
        """Raise Cancelled when the attempt shall stop. Cheap."""
        if self._stream.stop_reason is not None:
            raise Cancelled(self._stream.stop_reason)

    def sign_inputs(self, files: Sequence[tuple[str, str]]) -> list[pb.SignedTransfer]:
        """Return a signed GET for each (ResolvedInput.field, InputFile.path), in their order.

        Raises:
            NotFound: no such input.
            FailedPrecondition: INPUT_CHANGED, it is not what was pinned when the job was created.
        """
        return self._sign(
            [pb.UrlRequest(input=pb.InputTarget(field=field, path=path)) for field, path in files]
        )

    def sign_outputs(self, files: Sequence[tuple[str, int]]) -> list[pb.SignedTransfer]:
        """Return signed PUTs for each (path below the attempt, bytes), in their order.

        A large file gets ``part_urls``: finish it with ``complete_upload``.

        Raises:
            InvalidArgument: a path leaves the attempt's folder.
        """
        return self._sign(
            [pb.UrlRequest(output=pb.OutputTarget(path=path, bytes=size)) for path, size in files]
        )

    def sign_step(self, paths: Sequence[str]) -> list[pb.SignedTransfer]:
        """Return a signed GET for each StepFile.path of ``Assignment.resume_from``, in their order.

        Raises:
            NotFound: no such file.
        """
        return self._sign([pb.UrlRequest(step=pb.StepTarget(path=path)) for path in paths])

    def complete_upload(self, path: str, upload_id: str, etags: Sequence[str]) -> None:
        """Join the parts of one output; ``etags`` in the order of the parts."""
        request = pb.CompleteUploadRequest(path=path, upload_id=upload_id, etags=etags)
        self._call(self._stream.call(lambda stub: stub.CompleteUpload, request))

    def list_inputs(self) -> list[pb.ResolvedInput]:
        """Return the job's inputs with folders expanded."""
        request = pb.ListInputsRequest()
        return list(self._call(self._stream.call(lambda stub: stub.ListInputs, request)).inputs)

    def finish(self, manifest_sha256: str) -> None:
        """Say that everything is uploaded, and wait until that is stored.

        Raises:
            Cancelled: the worker had to stop before it could say so.
        """
        self._end(pb.AttachRequest(finished=pb.Finished(manifest_sha256=manifest_sha256)))

    def fail(self, error: pb.JobError) -> None:
        """Say that the attempt failed, and wait until that is stored. Raises as ``finish``."""
        self._end(pb.AttachRequest(failed=pb.Failed(error=error)))

    def stopped(self) -> None:
        """Say that the attempt stopped early. Waits a few seconds at most: it is a courtesy."""
        why = self._stream.stopped_why
        if why is not None:
            with suppress(Cancelled):  # it is said already
                self._end(pb.AttachRequest(stopped=pb.Stopped(why=why)), timeout=2.0)

    def disrupt(self) -> None:
        """The machine is being taken away (SIGTERM): say ``stopped``, and make the main thread
        stop. From any thread."""
        self._loop.call_soon_threadsafe(self._stream.disrupt)

    def close(self) -> None:
        """Close the stream and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stream.close(), self._loop).result(5.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)

    def _sign(self, requests: Sequence[pb.UrlRequest]) -> list[pb.SignedTransfer]:
        transfers: list[pb.SignedTransfer] = []
        for start in range(0, len(requests), BATCH):
            batch = pb.SignUrlsRequest(requests=requests[start : start + BATCH])
            response = self._call(self._stream.call(lambda stub: stub.SignUrls, batch))
            transfers.extend(response.transfers)
        return transfers

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the session's thread and wait, until the attempt shall stop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._calls.add(future)
        try:
            if self._stream.stop_reason is not None:
                future.cancel()
            return future.result()
        except CancelledError:
            raise Cancelled(self._stream.stop_reason) from None
        finally:
            self._calls.discard(future)

    def _abort_calls(self) -> None:
        for future in list(self._calls):
            future.cancel()

    def _end(self, message: pb.AttachRequest, timeout: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._stream.end, message)
        with suppress(TimeoutError):
            self._run.result(timeout)
        if not self._stream.ends_with(message):
            raise Cancelled(self._stream.stop_reason)
