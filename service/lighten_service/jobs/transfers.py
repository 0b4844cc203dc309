"""Signed URLs for workers: the inputs that the spec names, the step result that they go on from,
and what their attempt writes."""

import asyncio
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument, NotFound
from lighten_service.jobs.lifecycle import Lifecycle
from lighten_service.jobs.names import JobName, attempt_uri, safe_path, step_uri
from lighten_service.jobs.ports import ObjectStore
from lighten_service.jobs.record import JobRecord
from lighten_service.jobs.tokens import SessionClaims
from lighten_service.jobs.transitions import timestamp

# From this size on an output is uploaded in parts of this size.
PART_BYTES = 64 << 20
# S3 takes no more parts; larger outputs get larger parts.
MAX_PARTS = 10_000
MAX_OUTPUT_BYTES = 5 << 40
# Requests in one call.
MAX_BATCH = 1000

# Objects that are looked at, at the same time, for one request.
_PARALLEL = 16

# (ResolvedInput.field, InputFile.path) to the object's URI and what was pinned of it.
_Index = dict[tuple[str, str], tuple[str, pb.InputFile]]


class Transfers:
    """Every method raises AttemptFenced unless the claims are the current attempt's."""

    def __init__(
        self, lifecycle: Lifecycle, objects: ObjectStore, root_uri: str, *, expires_seconds: int
    ) -> None:
        self._lifecycle = lifecycle
        self._objects = objects
        self._root = root_uri
        self._expires = expires_seconds

    async def sign(
        self, claims: SessionClaims, requests: Sequence[pb.UrlRequest]
    ) -> list[pb.SignedTransfer]:
        """Sign a batch, in its order.

        Raises:
            InvalidArgument: INVALID_PATH, OUTPUT_TOO_LARGE, TARGET_MISSING, TOO_MANY_REQUESTS.
            NotFound: INPUT_NOT_FOUND, STEP_FILE_NOT_FOUND.
            FailedPrecondition: INPUT_CHANGED.
        """
        if len(requests) > MAX_BATCH:
            raise InvalidArgument(
                "TOO_MANY_REQUESTS", f"sign at most {MAX_BATCH} at once", field="requests"
            )
        record = await self._lifecycle.current(claims)
        inputs = _index(record)
        gate = asyncio.Semaphore(_PARALLEL)

        async def sign_one(request: pb.UrlRequest) -> pb.SignedTransfer:
            async with gate:
                match request.WhichOneof("target"):
                    case "input":
                        return await self._sign_input(inputs, request.input)
                    case "output":
                        return await self._sign_output(self._folder(record), request.output)
                    case "step":
                        return await self._sign_step(record, request.step)
                raise InvalidArgument("TARGET_MISSING", "name an input, an output or a step's file")

        return list(await asyncio.gather(*(sign_one(request) for request in requests)))

    async def complete(self, claims: SessionClaims, request: pb.CompleteUploadRequest) -> None:
        """Join the parts of one output."""
        record = await self._lifecycle.current(claims)
        uri = self._folder(record) + safe_path(request.path, "path")
        await self._objects.complete_upload(uri, request.upload_id, request.etags)

    async def inputs(self, claims: SessionClaims) -> tuple[pb.ResolvedInput, ...]:
        """Return the inputs as they were pinned when the job was created."""
        return (await self._lifecycle.current(claims)).inputs

    def _folder(self, record: JobRecord) -> str:
        return attempt_uri(self._root, JobName(record.project, record.job_id), record.job.attempt)

    async def _sign_input(self, inputs: _Index, target: pb.InputTarget) -> pb.SignedTransfer:
        found = inputs.get((target.field, target.path))
        if found is None:
            raise NotFound(
                "INPUT_NOT_FOUND", f'the spec names no "{target.path}" in {target.field}'
            )
        uri, pinned = found
        now = await self._objects.head(uri)
        if (now.bytes, now.etag) != (pinned.bytes, pinned.etag):
            raise FailedPrecondition(
                "INPUT_CHANGED",
                f"{uri} was changed after the job was created ({pinned.bytes} bytes, etag "
                f"{pinned.etag}; now {now.bytes} bytes, etag {now.etag}); create the job again",
                field=target.field,
            )
        url = await self._objects.sign_get(uri, expires_seconds=self._expires, audience="worker")
        return pb.SignedTransfer(url=url, expire_time=self._expiry())

    async def _sign_step(self, record: JobRecord, target: pb.StepTarget) -> pb.SignedTransfer:
        result = record.step_result
        if result is None or target.path not in {file.path for file in result.files}:
            raise NotFound(
                "STEP_FILE_NOT_FOUND", f'the job has no step result with a file "{target.path}"'
            )
        name = JobName(record.project, record.job_id)
        uri = step_uri(self._root, name, result.attempt, result.step_id) + target.path
        url = await self._objects.sign_get(uri, expires_seconds=self._expires, audience="worker")
        return pb.SignedTransfer(url=url, expire_time=self._expiry())

    async def _sign_output(self, folder: str, target: pb.OutputTarget) -> pb.SignedTransfer:
        uri = folder + safe_path(target.path, "path")
        if not 0 <= target.bytes <= MAX_OUTPUT_BYTES:
            raise InvalidArgument(
                "OUTPUT_TOO_LARGE", f"an output has 0 to {MAX_OUTPUT_BYTES} bytes", field="bytes"
            )
        if target.bytes > PART_BYTES:
            return await self._sign_parts(uri, target.bytes)
        url = await self._objects.sign_put(
            uri, max_bytes=target.bytes, expires_seconds=self._expires, audience="worker"
        )
        return pb.SignedTransfer(url=url, expire_time=self._expiry())

    async def _sign_parts(self, uri: str, size: int) -> pb.SignedTransfer:
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        upload_id = await self._objects.begin_upload(uri)
        urls = [
            await self._objects.sign_part(
                uri,
                upload_id,
                number,
                max_bytes=part_bytes,
                expires_seconds=self._expires,
                audience="worker",
            )
            for number in range(1, -(-size // part_bytes) + 1)
        ]
        return pb.SignedTransfer(
            part_urls=urls, part_bytes=part_bytes, upload_id=upload_id, expire_time=self._expiry()
        )

    def _expiry(self) -> Timestamp:
        return timestamp(self._lifecycle.clock.now() + self._expires)


def _index(record: JobRecord) -> _Index:
    return {
        (resolved.field, file.path): (
            resolved.uri + file.path if resolved.uri.endswith("/") else resolved.uri,
            file,
        )
        for resolved in record.inputs
        for file in resolved.files
    }
