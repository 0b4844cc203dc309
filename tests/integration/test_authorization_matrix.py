"""Every RPC of both services with every kind of token, over TLS."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lighten import v1 as pb
from lighten.v1 import optimization_service_pb2, worker_service_pb2
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten.v1.worker_service_pb2_grpc import WorkerServiceStub
from lighten_service.api.access import ACCESS
from lighten_service.jobs.ports import LaunchRequest
from lighten_service.telemetry import logs
from tests.support.edge import refused
from tests.support.scripted_workers import ScriptedWorker
from tests.support.secured import Secured, secured
from tests.support.tokens import CALLERS, PROJECT, token_of

OPTIMIZATION = optimization_service_pb2.DESCRIPTOR.services_by_name["OptimizationService"]
WORKER = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]

# What passes the guard meets a job that is QUEUED without a result.
NOT_YET = "FAILED_PRECONDITION"
UNKNOWN = ("UNAUTHENTICATED", "INVALID_TOKEN")
# Who has the project, but not the role.
REFUSED = {
    "CreateJob": ("viewer",),
    "CancelJob": ("viewer",),
    "CreateUploadUrl": ("viewer",),
    "DeleteJob": ("viewer", "submitter"),
}
# What OptimizationService tells everyone else, whatever the call.
STRANGERS = {
    "nobody": ("UNAUTHENTICATED", "TOKEN_MISSING"),
    "garbage": UNKNOWN,
    "expired": ("UNAUTHENTICATED", "TOKEN_EXPIRED"),
    "launch": UNKNOWN,
    "session": UNKNOWN,
}


@dataclass
class World:
    """A server with two jobs of the project: one that waits, one that runs."""

    callers: grpc.aio.Channel
    workers: grpc.aio.Channel
    server: Secured
    waiting: str
    running: LaunchRequest
    worker: ScriptedWorker
    session: str

    def token(self, who: str) -> str | None:
        known = {"nobody": None, "garbage": "g", "launch": self.running.token}
        return {**known, "session": self.session}.get(who, token_of(who))

    def request(self, rpc: str) -> Any:
        parent, name = f"projects/{PROJECT}", self.waiting
        requests = {
            "CreateJob": pb.CreateJobRequest(
                parent=parent, spec=self.server.spec(), validate_only=True
            ),
            "CreateUploadUrl": pb.CreateUploadUrlRequest(parent=parent, filename="model.onnx"),
            "CreateDownloadUrl": pb.CreateDownloadUrlRequest(job=name, artifact="model.onnx"),
            "ListArtifacts": pb.ListArtifactsRequest(parent=name),
            "GetCapabilities": pb.GetCapabilitiesRequest(),
            "ListInputs": pb.ListInputsRequest(),
            "SignUrls": pb.SignUrlsRequest(),
            "CompleteUpload": pb.CompleteUploadRequest(path="x", upload_id="u"),
            "Attach": pb.AttachRequest(hello=self.hello()),
        }
        for each in ("ListJobs", "WatchJobs"):
            requests[each] = getattr(pb, f"{each}Request")(parent=parent)
        for each in ("GetJob", "WatchJob", "CancelJob", "DeleteJob"):
            requests[each] = getattr(pb, f"{each}Request")(name=name)
        return requests[rpc]

    def hello(self) -> pb.Hello:
        return pb.Hello(
            job=self.running.name, launch=self.running.launch, instance_id="scripted", protocol=1
        )

    async def answer(self, service: ServiceDescriptor, rpc: str, who: str) -> tuple[str, str]:
        """Return status and reason of one call."""
        stubs = {
            OPTIMIZATION: OptimizationServiceStub(self.callers),
            WORKER: WorkerServiceStub(self.workers),
        }
        method = service.methods_by_name[rpc]
        request = self.request(rpc)
        call = getattr(stubs[service], rpc)(
            iter([request]) if method.client_streaming else request,
            metadata=bearer(self.token(who)),
        )
        try:
            await (call.read() if method.server_streaming else call)
        except grpc.aio.AioRpcError as error:
            return error.code().name, (await refused(_raise(error))).reason
        finally:
            call.cancel()
        return "OK", ""


async def silence() -> AsyncIterator[pb.AttachRequest]:
    await asyncio.Event().wait()
    yield pb.AttachRequest()


async def _raise(error: grpc.aio.AioRpcError) -> None:
    raise error


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with (
        secured(folder, slots=1) as server,
        grpc.aio.secure_channel(server.target, server.trust()) as callers,
        grpc.aio.insecure_channel(server.plane.addresses.workers) as workers,
    ):
        api = OptimizationServiceStub(callers)
        request = pb.CreateJobRequest(parent=f"projects/{PROJECT}", spec=server.spec())
        me = bearer(token_of("submitter"))
        await api.CreateJob(request, metadata=me)
        launch = await server.executor.launches.get()
        worker = ScriptedWorker(workers, launch)
        session = (await worker.attach()).session_token.token
        waiting = (await api.CreateJob(request, metadata=me)).job.name
        yield World(callers, workers, server, waiting, launch, worker, session)


def test_every_rpc_stands_in_the_table_with_the_field_that_names_its_project() -> None:
    assert set(ACCESS) == set(OPTIMIZATION.methods_by_name)
    for rpc, access in ACCESS.items():
        fields = OPTIMIZATION.methods_by_name[rpc].input_type.fields_by_name
        names = {"parent", "name", "job"} & set(fields)
        assert {access.resource} - {""} == names


def expected(rpc: str, who: str) -> tuple[str, str]:
    """What a caller hears of OptimizationService."""
    if who in STRANGERS:
        return STRANGERS[who]
    if who == "foreigner" and rpc != "GetCapabilities":
        collection = rpc in ("CreateJob", "CreateUploadUrl", "ListJobs", "WatchJobs")
        return "NOT_FOUND", "PROJECT_NOT_FOUND" if collection else "JOB_NOT_FOUND"
    if who in REFUSED.get(rpc, ()):
        return "PERMISSION_DENIED", "ROLE_TOO_LOW"
    passes = {
        "DeleteJob": (NOT_YET, "JOB_NOT_FINISHED"),
        "CreateDownloadUrl": (NOT_YET, "NO_RESULT"),
    }
    return passes.get(rpc, ("OK", ""))


def expected_of_workers(rpc: str, who: str) -> tuple[str, str]:
    """What a worker hears of WorkerService: callers' tokens are nothing there."""
    if who == "nobody":
        return "UNAUTHENTICATED", "TOKEN_MISSING"
    if who == ("launch" if rpc == "Attach" else "session"):
        return ("NOT_FOUND", "UPLOAD_NOT_FOUND") if rpc == "CompleteUpload" else ("OK", "")
    return UNKNOWN


@pytest.mark.parametrize("who", dict.fromkeys([*CALLERS, *STRANGERS]))
async def test_each_token_opens_what_it_shall_and_nothing_else(tmp_path: Path, who: str) -> None:
    async with world(tmp_path) as server:
        # CancelJob would change what the others find.
        rpcs = sorted(OPTIMIZATION.methods_by_name, key="CancelJob".__eq__)
        heard = {rpc: await server.answer(OPTIMIZATION, rpc, who) for rpc in rpcs}
        assert heard == {rpc: expected(rpc, who) for rpc in rpcs}
        rpcs = sorted(WORKER.methods_by_name)
        heard = {rpc: await server.answer(WORKER, rpc, who) for rpc in rpcs}
        assert heard == {rpc: expected_of_workers(rpc, who) for rpc in rpcs}


async def test_what_is_open_and_what_any_token_opens(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        probe = health_pb2_grpc.HealthStub(server.callers)
        answer = await probe.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

        reflection = reflection_pb2_grpc.ServerReflectionStub(server.callers)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        refusal = await refused(reflection.ServerReflectionInfo(iter(asked)))
        assert refusal.reason == "TOKEN_MISSING"
        call = reflection.ServerReflectionInfo(iter(asked), metadata=bearer(token_of("foreigner")))
        names = {item.name for item in (await call.read()).list_services_response.service}
        assert OPTIMIZATION.full_name in names
        # Workers have a port of their own: callers' network never reaches their service.
        assert WORKER.full_name not in names
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await WorkerServiceStub(server.callers).ListInputs(pb.ListInputsRequest())


async def test_a_foreign_job_sounds_like_one_that_never_was(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        api = OptimizationServiceStub(server.callers)
        job_id = server.waiting.rpartition("/")[2]
        for rpc in ("GetJob", "WatchJob", "CancelJob", "DeleteJob"):
            foreign = getattr(pb, f"{rpc}Request")(name=server.waiting)
            missing = getattr(pb, f"{rpc}Request")(name=f"projects/audio/jobs/{job_id}")
            said = [
                await refused(getattr(api, rpc)(request, metadata=bearer("token-foreigner")))
                for request in (foreign, missing)
            ]
            assert said[0].message == said[1].message
            assert said[0].info == said[1].info


@pytest.fixture
def server_log(restore_logging: None) -> io.StringIO:
    """What the server logs, as lines of JSON."""
    out = io.StringIO()
    logs.configure(form="json", out=out)
    return out


async def test_a_launch_token_of_another_job_is_refused_counted_and_logged(
    tmp_path: Path, server_log: io.StringIO
) -> None:
    async with world(tmp_path) as server:
        hello = server.hello()
        hello.job = server.waiting
        stub = WorkerServiceStub(server.workers)
        call = stub.Attach(
            iter([pb.AttachRequest(hello=hello)]), metadata=bearer(server.running.token)
        )
        assert (await refused(call)).reason == "WRONG_JOB"
        assert server.server.metric("lighten_workers_refused_total", reason="WRONG_JOB") == 1
    assert '"worker refused"' in server_log.getvalue()
    assert server.running.token not in server_log.getvalue()


async def test_tokens_of_a_worker_whose_job_is_over_open_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        await server.worker.fail(pb.JobError(reason="BROKEN", kind=pb.ERROR_KIND_USER))
        fenced = ("PERMISSION_DENIED", "ATTEMPT_FENCED")
        assert await server.answer(WORKER, "SignUrls", "session") == fenced
        call = WorkerServiceStub(server.workers).Attach(
            iter([server.request("Attach")]), metadata=bearer(server.running.token)
        )
        assert (await call.read()).HasField("fenced")
        assert server.server.metric("lighten_workers_refused_total", reason=fenced[1]) == 2


async def test_refusals_are_counted_and_the_log_names_who_without_the_token(
    tmp_path: Path, server_log: io.StringIO
) -> None:
    async with world(tmp_path) as server:
        await server.answer(OPTIMIZATION, "DeleteJob", "submitter")
        await server.answer(OPTIMIZATION, "CancelJob", "submitter")
        assert server.server.metric("lighten_auth_refused_total", reason="ROLE_TOO_LOW") == 1
    said = [json.loads(line) for line in server_log.getvalue().splitlines()]
    refusal = next(line for line in said if line["message"] == "refused")
    assert (refusal["principal"], refusal["reason"]) == ("submitter", "ROLE_TOO_LOW")
    cancelled = next(line for line in said if line.get("rpc") == "CancelJob")
    assert (cancelled["principal"], cancelled["resource"]) == ("submitter", server.waiting)
    assert token_of("submitter") not in server_log.getvalue()
