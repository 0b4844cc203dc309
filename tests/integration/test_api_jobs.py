"""Create, get, list, cancel and delete over a real server, store and local folder."""

import asyncio
import urllib.error
import urllib.request
from datetime import UTC, datetime

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lighten import v1 as pb
from lighten_service.jobs.support import type_support
from tests.support.edge import Edge, refused, running_edge
from tests.support.specs import onnx_spec

PARENT = "projects/default"


@pytest.fixture
async def edge(tmp_path):
    async with running_edge(tmp_path) as running:
        yield running


async def test_a_job_is_stored_resolved_and_returned(edge: Edge):
    job = await edge.create(request_id="r1")
    assert job.name.startswith("projects/default/jobs/")
    assert job.state == pb.JOB_STATE_QUEUED
    assert job.spec == edge.spec()
    assert job.resolved_spec.outputs.opset == 21
    assert list(job.techniques) == ["calibrate"]
    assert job.last_sequence == 1
    got = (await edge.api.GetJob(pb.GetJobRequest(name=job.name))).job
    assert (got.spec, got.resolved_spec) == (job.spec, job.resolved_spec)
    basic = pb.GetJobRequest(name=job.name, view=pb.JOB_VIEW_BASIC)
    assert not (await edge.api.GetJob(basic)).job.HasField("spec")


async def test_the_same_request_makes_one_job_however_often_it_is_raced(edge: Edge):
    jobs = await asyncio.gather(*(edge.create(request_id="once") for _ in range(20)))
    assert len({job.name for job in jobs}) == 1
    listed = await edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT))
    assert len(listed.jobs) == 1


async def test_a_repeated_request_gets_its_job_though_an_input_is_gone(edge: Edge):
    first = await edge.create(request_id="once")
    (edge.files / "model.onnx").unlink()
    assert (await edge.create(request_id="once")).name == first.name
    for fields in ({"request_id": "another"}, {"request_id": "once", "validate_only": True}):
        request = pb.CreateJobRequest(parent=PARENT, spec=edge.spec(), **fields)
        assert (await refused(edge.api.CreateJob(request))).reason == "OBJECT_NOT_FOUND"
    spec = edge.spec()
    spec.plan.steps.steps[0].calibrate.percentile = 99.0
    request = pb.CreateJobRequest(parent=PARENT, spec=spec, request_id="once")
    assert (await refused(edge.api.CreateJob(request))).reason == "REQUEST_ID_REUSED"


async def test_a_request_id_with_another_spec_names_what_differs(edge: Edge):
    first = await edge.create(request_id="once")
    spec = edge.spec()
    spec.seed = 7
    spec.plan.steps.steps[0].calibrate.scheme = pb.RANGE_SCHEME_SQNR
    request = pb.CreateJobRequest(parent=PARENT, spec=spec, request_id="once")
    refusal = await refused(edge.api.CreateJob(request))
    assert refusal.code == grpc.StatusCode.ALREADY_EXISTS
    assert refusal.info.metadata["job"] == first.name
    assert "plan.steps.steps[0].calibrate.scheme, seed" in refusal.message
    other = pb.CreateJobRequest(parent="projects/other", spec=spec, request_id="once")
    assert (await edge.api.CreateJob(other)).job.name != first.name


async def test_validate_only_checks_and_stores_nothing(edge: Edge):
    job = await edge.create(validate_only=True)
    assert (job.name, job.state) == ("", pb.JOB_STATE_UNSPECIFIED)
    assert job.resolved_spec.outputs.opset == 21
    assert not (await edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT))).jobs
    spec = edge.spec()
    spec.model.artifact.uri += "x"
    request = pb.CreateJobRequest(parent=PARENT, spec=spec, validate_only=True)
    assert (await refused(edge.api.CreateJob(request))).code == grpc.StatusCode.NOT_FOUND


async def test_more_queued_jobs_than_allowed(tmp_path):
    async with running_edge(tmp_path, limits={"max_queued_jobs": 2}) as edge:
        await edge.create()
        await edge.create()
        refusal = await refused(
            edge.api.CreateJob(pb.CreateJobRequest(parent=PARENT, spec=edge.spec()))
        )
        assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_another_projects_job_is_not_found(edge: Edge):
    job = await edge.create()
    name = job.name.replace("default", "other")
    for call in (
        edge.api.GetJob(pb.GetJobRequest(name=name)),
        edge.api.CancelJob(pb.CancelJobRequest(name=name)),
        edge.api.DeleteJob(pb.DeleteJobRequest(name=name)),
        edge.api.WatchJob(pb.WatchJobRequest(name=name)),
        edge.api.ListArtifacts(pb.ListArtifactsRequest(parent=name)),
        edge.api.CreateDownloadUrl(pb.CreateDownloadUrlRequest(job=name, artifact="a")),
    ):
        refusal = await refused(call)
        assert (refusal.code.name, refusal.reason) == ("NOT_FOUND", "JOB_NOT_FOUND")
    assert (await edge.api.GetJob(pb.GetJobRequest(name=job.name))).job.state == job.state


async def test_pages_hold_every_job_once_newest_first(edge: Edge):
    names = [(await edge.create()).name for _ in range(7)]
    seen, token = [], ""
    while True:
        request = pb.ListJobsRequest(parent=PARENT, page_size=3, page_token=token)
        page = await edge.api.ListJobs(request)
        assert len(page.jobs) <= 3
        assert not any(job.HasField("spec") for job in page.jobs)
        seen += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == names[::-1]


async def test_a_page_token_belongs_to_its_question(edge: Edge):
    for _ in range(2):
        await edge.create()
    page = await edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT, page_size=1))
    for request in (
        pb.ListJobsRequest(parent=PARENT, filter="state = QUEUED", page_token=page.next_page_token),
        pb.ListJobsRequest(parent="projects/other", page_token=page.next_page_token),
        pb.ListJobsRequest(parent=PARENT, page_token="bm9uc2Vuc2U="),
        pb.ListJobsRequest(parent=PARENT, page_token="é"),
    ):
        refusal = await refused(edge.api.ListJobs(request))
        assert refusal.reason == "INVALID_PAGE_TOKEN"


async def test_filters(edge: Edge):
    spec = edge.spec()
    spec.labels["team"] = "vision"
    spec.model.artifact.sha256 = "ab" * 32
    vision = await edge.create(spec=spec)
    plain = await edge.create()
    await edge.api.CancelJob(pb.CancelJobRequest(name=plain.name))
    now = datetime.now(UTC).isoformat()
    for text, expected in {
        'labels.team = "vision"': [vision.name],
        'labels.team != "vision"': [plain.name],
        "state = CANCELLED": [plain.name],
        "state != CANCELLED AND technique = calibrate": [vision.name],
        f"model_sha256 = {'ab' * 32}": [vision.name],
        f'create_time < "{now}"': [plain.name, vision.name],
        f'create_time > "{now}"': [],
    }.items():
        request = pb.ListJobsRequest(parent=PARENT, filter=text)
        found = [job.name for job in (await edge.api.ListJobs(request)).jobs]
        assert found == expected, text
    refusal = await refused(edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT, filter="x = 1")))
    assert refusal.reason == "INVALID_FILTER"


async def test_a_queued_job_is_cancelled_at_once_and_again(edge: Edge):
    job = await edge.create()
    request = pb.CancelJobRequest(name=job.name, reason="wrong data")
    sequences = set()
    for _ in range(2):
        cancelled = (await edge.api.CancelJob(request)).job
        assert cancelled.state == pb.JOB_STATE_CANCELLED
        assert cancelled.state_reason == "wrong data"
        assert cancelled.HasField("end_time")
        sequences.add(cancelled.last_sequence)
    assert len(sequences) == 1


async def test_a_running_job_goes_through_cancelling(tmp_path):
    async with running_edge(tmp_path, slots=1, cancel_grace_seconds=0.1) as edge:
        job = await edge.create()
        await edge.worker()
        live = (await edge.api.CancelJob(pb.CancelJobRequest(name=job.name))).job
        assert live.state == pb.JOB_STATE_CANCELLING
        refusal = await refused(edge.api.DeleteJob(pb.DeleteJobRequest(name=job.name)))
        assert refusal.reason == "JOB_NOT_FINISHED"
        watch = edge.api.WatchJob(pb.WatchJobRequest(name=job.name))
        last = [response async for response in watch][-1]
        assert last.event.state_changed.to == pb.JOB_STATE_CANCELLED


async def test_results_are_listed_downloaded_and_deleted(tmp_path):
    async with running_edge(tmp_path, slots=1) as edge:
        job = await edge.create()
        name = job.name
        early = pb.CreateDownloadUrlRequest(job=name, artifact="model.qdq.onnx")
        assert (await refused(edge.api.CreateDownloadUrl(early))).reason == "NO_RESULT"
        assert not (await edge.api.ListArtifacts(pb.ListArtifactsRequest(parent=name))).artifacts
        await edge.succeed(job, b"content")
        done = (await edge.api.GetJob(pb.GetJobRequest(name=name))).job
        assert done.state == pb.JOB_STATE_SUCCEEDED
        listed = await edge.api.ListArtifacts(pb.ListArtifactsRequest(parent=name))
        assert [artifact.name for artifact in listed.artifacts] == ["model.qdq.onnx"]
        answer = await edge.api.CreateDownloadUrl(early)
        assert answer.artifact == listed.artifacts[0]
        assert await asyncio.to_thread(_get, answer.url) == b"content"
        other = pb.CreateDownloadUrlRequest(job=name, artifact="other")
        refusal = await refused(edge.api.CreateDownloadUrl(other))
        assert refusal.reason == "ARTIFACT_NOT_FOUND"
        assert "model.qdq.onnx" in refusal.message
        refusal = await refused(edge.api.CancelJob(pb.CancelJobRequest(name=name)))
        assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "JOB_FINISHED")
        await edge.api.DeleteJob(pb.DeleteJobRequest(name=name))
        assert (
            await refused(edge.api.GetJob(pb.GetJobRequest(name=name)))
        ).reason == "JOB_NOT_FOUND"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(_get, answer.url)


async def test_artifacts_can_outlive_their_job(tmp_path):
    async with running_edge(tmp_path, slots=1) as edge:
        job = await edge.create()
        await edge.succeed(job, b"content")
        download = pb.CreateDownloadUrlRequest(job=job.name, artifact="model.qdq.onnx")
        url = (await edge.api.CreateDownloadUrl(download)).url
        await edge.api.DeleteJob(pb.DeleteJobRequest(name=job.name, keep_artifacts=True))
        assert await asyncio.to_thread(_get, url) == b"content"


async def test_an_upload_becomes_an_input(edge: Edge):
    first = await edge.api.CreateUploadUrl(
        pb.CreateUploadUrlRequest(parent=PARENT, filename="model.onnx", bytes=5)
    )
    second = await edge.api.CreateUploadUrl(
        pb.CreateUploadUrlRequest(
            parent=PARENT, filename="data/calibration.npz", upload_id=first.upload_id
        )
    )
    assert first.uri == f"{first.folder_uri}model.onnx"
    assert second.uri == f"{first.folder_uri}data/calibration.npz"
    with pytest.raises(urllib.error.HTTPError, match="413"):
        await asyncio.to_thread(_put, first.url, b"more than 5")
    await asyncio.to_thread(_put, first.url, b"model")
    await asyncio.to_thread(_put, second.url, b"data")
    spec = onnx_spec()
    spec.model.artifact.uri, spec.calibration.data.uri = first.uri, second.uri
    await edge.create(spec=spec)
    other = pb.CreateJobRequest(parent="projects/other", spec=spec)
    assert (await refused(edge.api.CreateJob(other))).reason == "OBJECT_FORBIDDEN"


async def test_capabilities_come_from_the_descriptors(edge: Edge):
    answer = await edge.api.GetCapabilities(pb.GetCapabilitiesRequest())
    techniques = {item.name: item for item in answer.techniques}
    assert set(techniques) == {
        field.name for field in pb.Step.DESCRIPTOR.oneofs_by_name["technique"].fields
    }
    calibrate = techniques["calibrate"]
    assert calibrate.message == "lighten.v1.Calibrate"
    assert calibrate.info.phase == pb.PHASE_CALIBRATE
    scheme, percentile, _ = calibrate.parameters
    assert (scheme.name, scheme.type) == ("scheme", "lighten.v1.RangeScheme")
    assert "RANGE_SCHEME_SQNR" in scheme.values
    assert (percentile.type, percentile.bounds.max) == ("double", 100)
    assert "htp_v73" in answer.hardware_configs
    assert tuple(answer.type_support) == type_support()
    assert answer.limits.max_page_size == 1000
    assert answer.server_version


async def test_probes_and_reflection(edge: Edge):
    health = health_pb2_grpc.HealthStub(edge.channel)
    for service in ("", "lighten.v1.OptimizationService", "lighten.v1.WorkerService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    text = await asyncio.to_thread(_get, f"{edge.plane.addresses.metrics}/metrics")
    assert b"lighten_rpcs_handled_total" in text


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body


def _put(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, data=body, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
