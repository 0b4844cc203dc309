"""A control plane in this process, on free ports, with a real store and a local folder."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten_service.assembly import ControlPlane, open_control_plane
from lighten_service.settings import Settings, load
from tests.support.scripted_workers import ScriptedExecutor, ScriptedWorker
from tests.support.specs import onnx_spec


class Edge:
    """A server with a client, and the files that ``spec`` names."""

    def __init__(
        self,
        plane: ControlPlane,
        channel: grpc.aio.Channel,
        executor: ScriptedExecutor,
        settings: Settings,
        files: Path,
    ) -> None:
        self.plane = plane
        self.channel = channel
        self.api: Any = OptimizationServiceStub(channel)
        self.executor = executor
        self.settings = settings
        self.files = files

    def spec(self) -> pb.JobSpec:
        return onnx_spec(self.files.as_uri())

    async def create(self, **fields: Any) -> pb.Job:
        fields.setdefault("spec", self.spec())
        request = pb.CreateJobRequest(parent="projects/default", **fields)
        job: pb.Job = (await self.api.CreateJob(request)).job
        return job

    async def worker(self) -> ScriptedWorker:
        """The worker of the next launch, attached."""
        worker = ScriptedWorker(self.channel, await self.executor.launches.get())
        await worker.attach()
        return worker

    async def succeed(self, job: pb.Job, content: bytes = b"onnx") -> None:
        """Play the job's worker to a success with one artifact."""
        worker = ScriptedWorker(self.channel, await self.executor.launches.get())
        await worker.finish(leave_result(job.name, await worker.attach(), content))


def leave_result(job: str, welcome: pb.Welcome, content: bytes = b"onnx") -> str:
    """Write one artifact and the manifest of an attempt; return the manifest's digest."""
    folder = Path(welcome.attempt_uri.removeprefix("file://"))
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "model.qdq.onnx").write_bytes(content)
    artifact = pb.Artifact(
        name="model.qdq.onnx",
        kind=pb.ARTIFACT_KIND_QDQ_ONNX,
        uri=f"{welcome.attempt_uri}artifacts/model.qdq.onnx",
        sha256=sha256(content).hexdigest(),
        bytes=len(content),
    )
    manifest = pb.Manifest(
        format_version=1,
        job=job,
        attempt=welcome.attempt,
        resolved_spec=welcome.resolved_spec,
        result=pb.JobResult(attempt=welcome.attempt, artifacts=[artifact]),
    )
    document = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    text = json.dumps(document, sort_keys=True).encode()
    (folder / "manifest.json").write_bytes(text)
    return sha256(text).hexdigest()


@asynccontextmanager
async def running_edge(
    folder: Path,
    *,
    slots: int = 0,
    executor: ScriptedExecutor | None = None,
    **overrides: Any,
) -> AsyncIterator[Edge]:
    """Start a server below ``folder``; a second start there finds the same jobs."""
    files = folder / "files"
    files.mkdir(exist_ok=True)
    for name in ("model.onnx", "calibration.npz"):
        (files / name).write_bytes(b"some bytes")
    workers = executor or ScriptedExecutor(slots)
    values = {
        "port": 0,
        "http_port": 0,
        "metrics_port": 0,
        "data_dir": folder / "data",
        "file_roots": [str(files)],
        "drain_seconds": 1,
        **overrides,
    }
    settings = load(overrides=values)
    async with (
        open_control_plane(settings, lambda *_: workers) as plane,
        grpc.aio.insecure_channel(plane.addresses.grpc) as channel,
    ):
        yield Edge(plane, channel, workers, settings, files)


class Refusal:
    """What a failed call told its caller."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        status: status_pb2.Status | None = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status is not None, f"{error.code()} without rich details: {error.details()}"
        self.info = error_details_pb2.ErrorInfo()
        self.bad_request = error_details_pb2.BadRequest()
        self.retry = error_details_pb2.RetryInfo()
        for detail in status.details:
            for message in (self.info, self.bad_request, self.retry):
                detail.Unpack(message)

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def fields(self) -> list[str]:
        return [item.field for item in self.bad_request.field_violations]


async def refused(call: Any) -> Refusal:
    """Await a call, or the first message of a stream, that must fail."""
    try:
        await (call.read() if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError("the call succeeded")
