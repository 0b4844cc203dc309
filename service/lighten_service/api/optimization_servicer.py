"""OptimizationService: validate, call the use case, answer."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceServicer
from lighten_service.api.validation import validate
from lighten_service.jobs.create import JobCreator
from lighten_service.jobs.files import FileService
from lighten_service.jobs.ports import JobStore
from lighten_service.jobs.service import JobService
from lighten_service.jobs.watch import WatchHub
from lighten_service.jobs.watch_many import watch_jobs

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the service offers, wired."""

    creator: JobCreator
    jobs: JobService
    files: FileService
    store: JobStore
    hub: WatchHub
    capabilities: Callable[[], pb.GetCapabilitiesResponse]


class OptimizationServicer(OptimizationServiceServicer):
    """The edge of the use cases. The promises of each call stand in the .proto."""

    def __init__(self, use_cases: UseCases) -> None:
        self._use = use_cases

    async def CreateJob(
        self, request: pb.CreateJobRequest, context: Context
    ) -> pb.CreateJobResponse:
        validate(request)
        return pb.CreateJobResponse(job=await self._use.creator.create(request))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        validate(request)
        return pb.GetJobResponse(job=await self._use.jobs.get(request))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        validate(request)
        return await self._use.jobs.list_jobs(request)

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        validate(request)
        async for response in self._use.hub.watch_job(request):
            yield response

    async def WatchJobs(
        self, request: pb.WatchJobsRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobsResponse]:
        validate(request)
        async for response in watch_jobs(self._use.store, self._use.hub, request):
            yield response

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        validate(request)
        return pb.CancelJobResponse(job=await self._use.jobs.cancel(request))

    async def DeleteJob(
        self, request: pb.DeleteJobRequest, context: Context
    ) -> pb.DeleteJobResponse:
        validate(request)
        await self._use.jobs.delete(request)
        return pb.DeleteJobResponse()

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Context
    ) -> pb.ListArtifactsResponse:
        validate(request)
        return await self._use.files.list_artifacts(request.parent)

    async def CreateDownloadUrl(
        self, request: pb.CreateDownloadUrlRequest, context: Context
    ) -> pb.CreateDownloadUrlResponse:
        validate(request)
        return await self._use.files.download_url(request)

    async def CreateUploadUrl(
        self, request: pb.CreateUploadUrlRequest, context: Context
    ) -> pb.CreateUploadUrlResponse:
        validate(request)
        return await self._use.files.upload_url(request)

    async def GetCapabilities(
        self, request: pb.GetCapabilitiesRequest, context: Context
    ) -> pb.GetCapabilitiesResponse:
        validate(request)
        return self._use.capabilities()
