"""Requests that are refused, each with its reason and field, over one real server."""

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from tests.support.edge import Edge, refused, running_edge

PARENT = "projects/default"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory):
    async with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


def _missing(spec: pb.JobSpec, edge: Edge) -> None:
    spec.calibration.data.uri = f"{edge.files.as_uri()}/gone.npz"


def _outside(spec: pb.JobSpec, edge: Edge) -> None:
    spec.model.artifact.uri = "file:///etc/passwd"


def _climbing(spec: pb.JobSpec, edge: Edge) -> None:
    spec.model.artifact.uri = f"{edge.files.as_uri()}/../model.onnx"


def _linked(spec: pb.JobSpec, edge: Edge) -> None:
    (edge.files / "link.onnx").symlink_to("/etc/passwd")
    spec.model.artifact.uri = f"{edge.files.as_uri()}/link.onnx"


def _empty(spec: pb.JobSpec, edge: Edge) -> None:
    (edge.files / "empty.onnx").write_bytes(b"")
    spec.model.artifact.uri = f"{edge.files.as_uri()}/empty.onnx"


def _empty_folder(spec: pb.JobSpec, edge: Edge) -> None:
    (edge.files / "folder").mkdir()
    spec.model.artifact.uri = f"{edge.files.as_uri()}/folder/"


def _incomplete_folder(spec: pb.JobSpec, edge: Edge) -> None:
    (edge.files / "model").mkdir()
    (edge.files / "model" / "model.onnx").write_bytes(b"x")
    spec.model.artifact.uri = f"{edge.files.as_uri()}/model/"
    spec.model.artifact.files.add(path="weights.bin", sha256="0" * 64)


def _no_storage(spec: pb.JobSpec, edge: Edge) -> None:
    spec.model.artifact.uri = "s3://bucket/model.onnx"


def _scheme(spec: pb.JobSpec, edge: Edge) -> None:
    spec.model.artifact.uri = "https://example.org/model.onnx"


def _memory(spec: pb.JobSpec, edge: Edge) -> None:
    spec.resources.memory_bytes = 1 << 40


def _gpu(spec: pb.JobSpec, edge: Edge) -> None:
    spec.resources.gpus = 1


def _order(spec: pb.JobSpec, edge: Edge) -> None:
    spec.plan.steps.steps.add(fold_batch_norms=pb.FoldBatchNorms())


def _timeout(spec: pb.JobSpec, edge: Edge) -> None:
    spec.resources.run_timeout.CopyFrom(Duration())


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        (_missing, "NOT_FOUND", "OBJECT_NOT_FOUND", "spec.calibration.data.uri"),
        (_outside, "PERMISSION_DENIED", "OBJECT_FORBIDDEN", "spec.model.artifact.uri"),
        (_climbing, "INVALID_ARGUMENT", "INVALID_URI", "spec.model.artifact.uri"),
        (_linked, "PERMISSION_DENIED", "OBJECT_FORBIDDEN", "spec.model.artifact.uri"),
        (_empty, "INVALID_ARGUMENT", "EMPTY_OBJECT", "spec.model.artifact.uri"),
        (_empty_folder, "NOT_FOUND", "OBJECT_NOT_FOUND", "spec.model.artifact.uri"),
        (_incomplete_folder, "NOT_FOUND", "OBJECT_NOT_FOUND", "spec.model.artifact.uri"),
        (_no_storage, "PERMISSION_DENIED", "OBJECT_FORBIDDEN", "spec.model.artifact.uri"),
        (_scheme, "INVALID_ARGUMENT", "INVALID_URI", "spec.model.artifact.uri"),
        (_memory, "INVALID_ARGUMENT", "RESOURCES_NOT_HERE", "spec.resources"),
        (_gpu, "INVALID_ARGUMENT", "RESOURCES_NOT_HERE", "spec.resources"),
        (_order, "INVALID_ARGUMENT", "INVALID_SPEC", "spec.plan.steps.steps"),
        (_timeout, "INVALID_ARGUMENT", "INVALID_SPEC", "spec.resources.run_timeout"),
    ],
)
async def test_what_cannot_be_read_or_run_is_refused(edge: Edge, change, code, reason, field):
    spec = edge.spec()
    change(spec, edge)
    refusal = await refused(edge.api.CreateJob(pb.CreateJobRequest(parent=PARENT, spec=spec)))
    assert (refusal.code.name, refusal.reason) == (code, reason)
    assert refusal.fields == [field]
    assert not (await edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT))).jobs


async def test_every_field_at_fault_is_told_at_once(edge: Edge):
    spec = edge.spec()
    spec.seed = -1
    spec.calibration.batch_size = 0
    refusal = await refused(edge.api.CreateJob(pb.CreateJobRequest(spec=spec)))
    assert refusal.fields == ["parent", "spec.calibration.batch_size", "spec.seed"]


@pytest.mark.parametrize("name", ["", "jobs/x", "projects/default/jobs/short"])
async def test_a_name_that_is_none(edge: Edge, name):
    refusal = await refused(edge.api.GetJob(pb.GetJobRequest(name=name)))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["name"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"filename": "../up"}, "INVALID_PATH"),
        ({"filename": "/root"}, "INVALID_PATH"),
        ({"filename": ".hidden"}, "INVALID_PATH"),
        ({"filename": "a b?"}, "INVALID_PATH"),
        ({"filename": "a", "bytes": 1 << 50}, "UPLOAD_TOO_LARGE"),
        ({"filename": "a", "upload_id": "abc"}, "UPLOAD_EXPIRED"),
        ({"filename": "a", "upload_id": "0" * 26}, "UPLOAD_EXPIRED"),
        ({"filename": "a", "upload_id": "z" * 26}, "UPLOAD_EXPIRED"),
        ({"filename": ""}, "INVALID_FIELD"),
    ],
)
async def test_uploads_that_are_refused(edge: Edge, fields, reason):
    request = pb.CreateUploadUrlRequest(parent=PARENT, **fields)
    refusal = await refused(edge.api.CreateUploadUrl(request))
    assert (refusal.code.name, refusal.reason) == ("INVALID_ARGUMENT", reason)
