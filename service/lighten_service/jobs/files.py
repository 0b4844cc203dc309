"""Signed URLs for what callers upload and download."""

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument, NotFound
from lighten_service.jobs.ids import new_id, time_of
from lighten_service.jobs.names import parse_job, parse_parent, safe_path, upload_uri
from lighten_service.jobs.ports import Clock, JobStore, ObjectStore
from lighten_service.jobs.transitions import state_name, timestamp


class FileService:
    """Artifacts and uploads. Callers read and write storage themselves, through signed URLs."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        *,
        storage_root: str,
        limits: pb.Limits,
        clock: Clock,
    ) -> None:
        self._store = store
        self._objects = objects
        self._root = storage_root
        self._limits = limits
        self._clock = clock

    async def list_artifacts(self, parent: str) -> pb.ListArtifactsResponse:
        """Return the files that a job wrote; none until it has succeeded. Raises NotFound."""
        name = parse_job(parent, "parent")
        record = await self._store.get(name.project, name.job_id)
        return pb.ListArtifactsResponse(artifacts=record.job.result.artifacts)

    async def download_url(
        self, request: pb.CreateDownloadUrlRequest
    ) -> pb.CreateDownloadUrlResponse:
        """Return a URL that reads one artifact.

        Raises:
            NotFound: JOB_NOT_FOUND or ARTIFACT_NOT_FOUND.
            FailedPrecondition: reason NO_RESULT, the job has not succeeded.
        """
        name = parse_job(request.job, "job")
        job = (await self._store.get(name.project, name.job_id)).job
        if not job.HasField("result"):
            raise FailedPrecondition(
                "NO_RESULT", f"{name} is {state_name(job.state)}; artifacts come with success"
            )
        artifact = next((a for a in job.result.artifacts if a.name == request.artifact), None)
        if artifact is None:
            names = ", ".join(item.name for item in job.result.artifacts)
            raise NotFound(
                "ARTIFACT_NOT_FOUND",
                f'{name} has no artifact "{request.artifact}"; it has: {names}',
                field="artifact",
            )
        seconds = self._limits.url_expiry_seconds
        url = await self._objects.sign_get(artifact.uri, expires_seconds=seconds, audience="public")
        expires = timestamp(self._clock.now() + seconds)
        return pb.CreateDownloadUrlResponse(url=url, expire_time=expires, artifact=artifact)

    async def upload_url(self, request: pb.CreateUploadUrlRequest) -> pb.CreateUploadUrlResponse:
        """Return a URL that takes one PUT, and the URI that a spec then names.

        Raises:
            InvalidArgument: INVALID_NAME, INVALID_PATH, UPLOAD_TOO_LARGE or UPLOAD_EXPIRED.
        """
        project = parse_parent(request.parent)
        filename = safe_path(request.filename, "filename")
        most = self._limits.max_upload_bytes
        if request.bytes > most:
            raise InvalidArgument(
                "UPLOAD_TOO_LARGE",
                f"{request.bytes} bytes are more than the {most} that this server takes",
                field="bytes",
            )
        upload_id = self._upload_id(request.upload_id)
        folder = upload_uri(self._root, project, upload_id)
        seconds = self._limits.url_expiry_seconds
        url = await self._objects.sign_put(
            folder + filename,
            max_bytes=request.bytes or most,
            expires_seconds=seconds,
            audience="public",
        )
        return pb.CreateUploadUrlResponse(
            url=url,
            expire_time=timestamp(self._clock.now() + seconds),
            uri=folder + filename,
            upload_id=upload_id,
            folder_uri=folder,
        )

    def _upload_id(self, given: str) -> str:
        now = self._clock.now()
        if not given:
            return new_id(now)
        made = time_of(given)
        if made is None or not now - self._limits.upload_expiry_seconds < made <= now:
            raise InvalidArgument(
                "UPLOAD_EXPIRED",
                f'"{given}" is no upload that is still open; leave upload_id out for a new one',
                field="upload_id",
            )
        return given
