"""The asyncio client: the methods of ``lighten.Client``, awaited."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc

from lighten import _files, _requests, config, errors
from lighten import v1 as pb
from lighten._access import PathLike, open_access
from lighten._aio_streams import JobWatch, watch_jobs
from lighten._channel import open_aio_channel
from lighten._errors import explain, from_rpc_error
from lighten._files import Check, FileProgress, Uploaded
from lighten._requests import SpecLike
from lighten._watch import JobsWatchState, JobWatchState, OnReconnect, Reconnect, StreamBroken
from lighten.config import DEFAULT_PROJECT, DEFAULT_TARGET
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub

if TYPE_CHECKING:
    from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceAsyncStub

__all__ = ["Client", "JobWatch", "Uploaded"]

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)
_Result = TypeVar("_Result")
_Metadata = tuple[tuple[str, str], ...]


class _Method(Protocol[_Request, _Response]):
    def __call__(
        self, request: _Request, /, *, timeout: float | None, metadata: _Metadata
    ) -> Awaitable[_Response]: ...


class Client:
    """A connection to a Lighten server, for the event loop in which it is made.

    Arguments, methods and errors are those of ``lighten.Client``. Close it, or use ``async with``.
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
        self._channel = open_aio_channel(self._access)
        self._stub: OptimizationServiceAsyncStub = OptimizationServiceStub(self._channel)

    @classmethod
    def from_config(
        cls, profile: str | None = None, *, timeout: float = 30.0, **given: str | None
    ) -> Self:
        """Connect as the environment and the user's configuration file say."""
        return cls(**asdict(config.load(profile, **given)), timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end with ``Cancelled``."""
        await self._channel.close()

    async def submit(
        self, spec: SpecLike, *, request_id: str | None = None, validate_only: bool = False
    ) -> pb.Job:
        """Store a job, which then runs by itself, and return it."""
        request = _requests.create(self.project, spec, request_id, validate_only)
        return (await self._call(self._stub.CreateJob, request)).job

    async def get(self, name: str, *, view: pb.JobView.ValueType = pb.JOB_VIEW_FULL) -> pb.Job:
        """Return one job; a failed one too, with ``Job.error``."""
        request = pb.GetJobRequest(name=self._name(name), view=view)
        return (await self._call(self._stub.GetJob, request)).job

    async def list(
        self,
        filter: str = "",
        *,
        view: pb.JobView.ValueType = pb.JOB_VIEW_BASIC,
        page_size: int = 0,
    ) -> AsyncIterator[pb.Job]:
        """Yield jobs of the project, newest first, page by page as they are needed."""
        request = pb.ListJobsRequest(
            parent=_requests.parent(self.project), filter=filter, view=view, page_size=page_size
        )
        while True:
            page = await self._call(self._stub.ListJobs, request)
            for job in page.jobs:
                yield job
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
        """Return an iterator over a job's events, live, that ends after the terminal event."""
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
    ) -> AsyncGenerator[pb.WatchJobsResponse, None]:
        """Yield all jobs that match, then ``synced``, then each change, until it is closed."""
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

    async def wait(
        self,
        name: str,
        timeout: float | None = None,
        on_event: Callable[[pb.JobEvent], None] | None = None,
    ) -> pb.Job:
        """Wait until a job has ended, whichever way, and return it in the FULL view."""
        watch = self.watch(name, timeout=timeout)
        try:
            async for event in watch:
                if on_event is not None:
                    on_event(event)
        finally:
            await watch.aclose()
        return await self.get(name)

    async def result(self, name: str, timeout: float | None = None) -> pb.JobResult:
        """Wait for a job and return its result. Raises JobFailed, JobCancelled."""
        return _requests.result_of(await self.wait(name, timeout))

    async def cancel(self, name: str, reason: str = "") -> pb.Job:
        """Ask a job to stop. Again on a cancelled job: no error."""
        request = pb.CancelJobRequest(name=self._name(name), reason=reason)
        return (await self._call(self._stub.CancelJob, request)).job

    async def delete(self, name: str, *, keep_artifacts: bool = False) -> None:
        """Delete a finished job, its events and, unless they shall be kept, its artifacts."""
        request = pb.DeleteJobRequest(name=self._name(name), keep_artifacts=keep_artifacts)
        await self._call(self._stub.DeleteJob, request)

    async def artifacts(self, name: str) -> Sequence[pb.Artifact]:
        """Return the files that a job wrote; none until it has succeeded."""
        request = pb.ListArtifactsRequest(parent=self._name(name))
        return [*(await self._call(self._stub.ListArtifacts, request)).artifacts]

    async def download(
        self,
        name: str,
        directory: str | os.PathLike[str],
        *,
        on_progress: FileProgress | None = None,
    ) -> Sequence[Path]:
        """Download all artifacts of a job, and return their paths in the job's order.

        ``on_progress`` is called from another thread.
        """
        job, artifacts = self._name(name), await self.artifacts(name)
        make_url = self._from_thread(self._download_url)
        return await _in_thread(
            lambda check: _files.download_all(
                job, artifacts, Path(directory), make_url, on_progress, check, ca=self._access.ca
            )
        )

    async def report(self, name: str) -> str:
        """Return the HTML report of a job that succeeded; it opens offline."""
        job, artifacts = self._name(name), await self.artifacts(name)
        make_url = self._from_thread(self._download_url)
        return await _in_thread(
            lambda check: _files.read_report(job, artifacts, make_url, check, ca=self._access.ca)
        )

    async def upload(
        self, path: str | os.PathLike[str], *, on_progress: FileProgress | None = None
    ) -> Uploaded:
        """Upload a file, or a folder with all files below it, for a spec to name.

        ``on_progress`` is called from another thread.
        """
        make_url = self._from_thread(self._upload_url)
        return await _in_thread(
            lambda check: _files.upload(
                Path(path), make_url, on_progress, check, ca=self._access.ca
            )
        )

    async def capabilities(self) -> pb.GetCapabilitiesResponse:
        """Return what the server can do: techniques and bounds, formats, types, limits."""
        return await self._call(self._stub.GetCapabilities, pb.GetCapabilitiesRequest())

    def _name(self, name: str) -> str:
        return _requests.job_name(self.project, name)

    def _reconnect(self, timeout: float | None, on_reconnect: OnReconnect | None) -> Reconnect:
        return Reconnect(patience=self._patience, timeout=timeout, on_reconnect=on_reconnect)

    async def _download_url(
        self, request: pb.CreateDownloadUrlRequest
    ) -> pb.CreateDownloadUrlResponse:
        return await self._call(self._stub.CreateDownloadUrl, request)

    async def _upload_url(self, request: pb.CreateUploadUrlRequest) -> pb.CreateUploadUrlResponse:
        request.parent = _requests.parent(self.project)
        return await self._call(self._stub.CreateUploadUrl, request)

    async def _call(self, method: _Method[_Request, _Response], request: _Request) -> _Response:
        try:
            return await method(request, timeout=self._timeout, metadata=self._access.metadata)
        except grpc.RpcError as error:
            raise await self._typed(error) from error

    async def _typed(self, error: grpc.RpcError | StreamBroken) -> errors.LightenError:
        if isinstance(error, StreamBroken):
            return error
        typed = from_rpc_error(error, self.target)
        return await asyncio.to_thread(explain, typed, self._access)

    @staticmethod
    def _from_thread(
        method: Callable[[_Request], Coroutine[Any, Any, _Result]],
    ) -> Callable[[_Request], _Result]:
        """Return a method of this client as a blocking function for another thread."""
        loop = asyncio.get_running_loop()
        return lambda request: asyncio.run_coroutine_threadsafe(method(request), loop).result()


async def _in_thread(work: Callable[[Check], _Result]) -> _Result:
    """Run blocking work in a thread, which stops at its next check when this task is cancelled."""
    given_up = threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise errors.Cancelled("the transfer was given up", reason="CANCELLED")

    try:
        return await asyncio.to_thread(work, check)
    except asyncio.CancelledError:
        given_up.set()
        raise
