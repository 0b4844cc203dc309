"""The synchronous client."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from lighten import _files, _requests, config
from lighten import v1 as pb
from lighten._access import PathLike, open_access
from lighten._channel import open_channel
from lighten._errors import explain, from_rpc_error
from lighten._files import FileProgress, Uploaded
from lighten._requests import SpecLike
from lighten._streams import JobWatch, watch_jobs
from lighten._watch import JobsWatchState, JobWatchState, OnReconnect, Reconnect, StreamBroken
from lighten.config import DEFAULT_PROJECT, DEFAULT_TARGET
from lighten.errors import LightenError
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub

__all__ = ["Client", "JobWatch", "Uploaded"]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """A connection to a Lighten server. Safe to share between threads; close it, or use ``with``.

    Every method raises a class of ``lighten.errors``: ``Unavailable`` when the server cannot be
    reached after a few tries, ``DeadlineExceeded`` after ``timeout``, and what each method names.
    A job's name is ``projects/{project}/jobs/{job}``; the id alone means this client's project.

    Args:
        target: ``HOST:PORT`` of the server, or ``grpcs://HOST:PORT`` for TLS.
        project: whose jobs these are.
        timeout: seconds that one call may take, retries included. Watches and file transfers are
            not bound by it.
        token: what the server knows the caller by. It goes over TLS or to this machine alone.
        ca: file (PEM) of a private CA that signed the server's certificate; means TLS.
        cert, key: files (PEM) of a client certificate, where the server asks for one.
        credentials: for TLS of one's own making, in place of ``ca``, ``cert`` and ``key``.
        patience: seconds that a watch keeps trying to come back after its connection broke.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        *,
        token: str | None = None,
        ca: PathLike | None = None,
        cert: PathLike | None = None,
        key: PathLike | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        patience: float = 300.0,
    ) -> None:
        self.target = target
        self.project = project
        self._timeout = timeout
        self._patience = patience
        self._access = open_access(
            target, token=token, ca=ca, cert=cert, key=key, credentials=credentials
        )
        self._channel = open_channel(self._access)
        self._stub = OptimizationServiceStub(self._channel)

    @classmethod
    def from_config(
        cls, profile: str | None = None, *, timeout: float = 30.0, **given: str | None
    ) -> Self:
        """Connect as the environment and the user's configuration file say: see
        ``lighten.config``, whose ``load`` takes and raises the same.
        """
        return cls(**asdict(config.load(profile, **given)), timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with ``Cancelled``."""
        self._channel.close()

    def submit(
        self, spec: SpecLike, *, request_id: str | None = None, validate_only: bool = False
    ) -> pb.Job:
        """Store a job, which then runs by itself, and return it.

        Args:
            spec: a message, a mapping, a path to a YAML file, or YAML text.
            request_id: makes a repeated call return the same job; default: a new UUID.
            validate_only: check everything that needs no model loading, store nothing, and return
                the job as it would be, without a name.

        Raises:
            InvalidSpec: the spec cannot be read.
            InvalidArgument: the server refuses it; ``violations`` name the fields.
            NotFound, PermissionDenied: an object that the spec names.
            AlreadyExists: ``request_id`` was used with another spec.
            ResourceExhausted: too many jobs are queued.
        """
        request = _requests.create(self.project, spec, request_id, validate_only)
        return self._call(self._stub.CreateJob, request).job

    def get(self, name: str, *, view: pb.JobView.ValueType = pb.JOB_VIEW_FULL) -> pb.Job:
        """Return one job; a failed one too, with ``Job.error``. Raises NotFound."""
        request = pb.GetJobRequest(name=self._name(name), view=view)
        return self._call(self._stub.GetJob, request).job

    def list(
        self,
        filter: str = "",
        *,
        view: pb.JobView.ValueType = pb.JOB_VIEW_BASIC,
        page_size: int = 0,
    ) -> Iterator[pb.Job]:
        """Yield jobs of the project, newest first, page by page as they are needed.

        Args:
            filter: terms joined by AND, for example ``state = RUNNING AND labels.team = "vision"``.
            page_size: jobs in one call; 0: the server's default.

        Raises:
            InvalidArgument: the filter cannot be read.
        """
        request = pb.ListJobsRequest(
            parent=_requests.parent(self.project), filter=filter, view=view, page_size=page_size
        )
        while True:
            page = self._call(self._stub.ListJobs, request)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(
        self,
        name: str,
        after_sequence: int = 0,
        *,
        timeout: float | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> JobWatch:
        """Return an iterator over a job's events, live, that ends after the terminal event.

        It connects again by itself when the server goes away or the stream breaks, and neither
        misses nor repeats an event. Retention removes progress and log events of old finished
        jobs; ``JobWatch.snapshot`` says where the log begins.

        Args:
            after_sequence: sequence of the last event that the caller has.
            timeout: seconds for the whole watch; None: no limit.
            on_reconnect: called with the error and the delay in seconds before each new try.

        Raises:
            NotFound: no such job.
            OutOfRange: ``after_sequence`` is above the newest event.
            Unavailable: out of reach at the start, or for longer than the client's patience.
            DeadlineExceeded: ``timeout`` is over; the job goes on.
        """
        state = JobWatchState(
            self._name(name), after_sequence, self._reconnect(timeout, on_reconnect)
        )
        return JobWatch(
            self._typed,
            lambda request, left: self._stub.WatchJob(
                request, timeout=left, metadata=self._access.metadata
            ),
            state,
        )

    def watch_jobs(
        self,
        filter: str = "",
        *,
        timeout: float | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> Generator[pb.WatchJobsResponse, None, None]:
        """Yield all jobs that match, then ``synced``, then each change, until it is closed.

        Level-triggered: intermediate states may be left out, and after a reconnect every match is
        told again. Jobs that went away meanwhile are told as ``removed``.

        Raises:
            InvalidArgument: the filter cannot be read.
            DeadlineExceeded: ``timeout`` is over.
        """
        state = JobsWatchState(
            _requests.parent(self.project), filter, self._reconnect(timeout, on_reconnect)
        )
        return watch_jobs(
            self._typed,
            lambda request, left: self._stub.WatchJobs(
                request, timeout=left, metadata=self._access.metadata
            ),
            state,
        )

    def wait(
        self,
        name: str,
        timeout: float | None = None,
        on_event: Callable[[pb.JobEvent], None] | None = None,
    ) -> pb.Job:
        """Wait until a job has ended, whichever way, and return it in the FULL view.

        Args:
            timeout: seconds; None: no limit.
            on_event: called with every event, from the first.

        Raises:
            DeadlineExceeded: ``timeout`` is over; the job goes on.
            NotFound: no such job.
        """
        watch = self.watch(name, timeout=timeout)
        try:
            for event in watch:
                if on_event is not None:
                    on_event(event)
        finally:
            watch.close()
        return self.get(name)

    def result(self, name: str, timeout: float | None = None) -> pb.JobResult:
        """Wait for a job and return its result.

        Raises:
            JobFailed: it failed; ``error`` says why.
            JobCancelled: it was cancelled.
            DeadlineExceeded: ``timeout`` is over; the job goes on.
        """
        return _requests.result_of(self.wait(name, timeout))

    def cancel(self, name: str, reason: str = "") -> pb.Job:
        """Ask a job to stop. Again on a cancelled job: no error.

        Raises:
            FailedPrecondition: it has ended otherwise.
        """
        request = pb.CancelJobRequest(name=self._name(name), reason=reason)
        return self._call(self._stub.CancelJob, request).job

    def delete(self, name: str, *, keep_artifacts: bool = False) -> None:
        """Delete a finished job, its events and, unless they shall be kept, its artifacts.

        Raises:
            FailedPrecondition: it is not finished; cancel it first.
        """
        request = pb.DeleteJobRequest(name=self._name(name), keep_artifacts=keep_artifacts)
        self._call(self._stub.DeleteJob, request)

    def artifacts(self, name: str) -> Sequence[pb.Artifact]:
        """Return the files that a job wrote; none until it has succeeded."""
        request = pb.ListArtifactsRequest(parent=self._name(name))
        return [*self._call(self._stub.ListArtifacts, request).artifacts]

    def download(
        self,
        name: str,
        directory: str | os.PathLike[str],
        *,
        on_progress: FileProgress | None = None,
    ) -> Sequence[Path]:
        """Download all artifacts of a job, and return their paths in the job's order.

        Each file is checked against its digest and appears whole or not at all. One that is there
        already with the right digest is left alone; one that was broken off is resumed.

        Args:
            on_progress: called with the artifact's name, bytes done and bytes in all.

        Raises:
            FailedPrecondition: the job has no result.
            TransferError: a file cannot be read or written, or has another digest.
        """
        return _files.download_all(
            self._name(name),
            self.artifacts(name),
            Path(directory),
            self._download_url,
            on_progress,
            ca=self._access.ca,
        )

    def report(self, name: str) -> str:
        """Return the HTML report of a job that succeeded; it opens offline.

        Raises:
            NotFound: REPORT_NOT_FOUND, the job has none.
            TransferError: the report cannot be read, or has another digest.
        """
        return _files.read_report(
            self._name(name), self.artifacts(name), self._download_url, ca=self._access.ca
        )

    def upload(
        self, path: str | os.PathLike[str], *, on_progress: FileProgress | None = None
    ) -> Uploaded:
        """Upload a file, or a folder with all files below it, for a spec to name.

        Args:
            on_progress: called with the file's name, bytes done and bytes in all.

        Returns:
            The URI for ``ObjectRef.uri``, and the SHA-256 of a single file for
            ``ObjectRef.sha256``.

        Raises:
            InvalidArgument: there is no such file, or it is larger than the server takes.
            TransferError: a file cannot be read or sent.
        """
        return _files.upload(Path(path), self._upload_url, on_progress, ca=self._access.ca)

    def capabilities(self) -> pb.GetCapabilitiesResponse:
        """Return what the server can do: techniques and bounds, formats, types, limits."""
        return self._call(self._stub.GetCapabilities, pb.GetCapabilitiesRequest())

    def _name(self, name: str) -> str:
        return _requests.job_name(self.project, name)

    def _reconnect(self, timeout: float | None, on_reconnect: OnReconnect | None) -> Reconnect:
        return Reconnect(patience=self._patience, timeout=timeout, on_reconnect=on_reconnect)

    def _download_url(self, request: pb.CreateDownloadUrlRequest) -> pb.CreateDownloadUrlResponse:
        return self._call(self._stub.CreateDownloadUrl, request)

    def _upload_url(self, request: pb.CreateUploadUrlRequest) -> pb.CreateUploadUrlResponse:
        request.parent = _requests.parent(self.project)
        return self._call(self._stub.CreateUploadUrl, request)

    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        try:
            return method(request, timeout=self._timeout, metadata=self._access.metadata)
        except grpc.RpcError as error:
            raise self._typed(error) from error

    def _typed(self, error: grpc.RpcError | StreamBroken) -> LightenError:
        if isinstance(error, StreamBroken):
            return error
        return explain(from_rpc_error(error, self.target), self._access)
