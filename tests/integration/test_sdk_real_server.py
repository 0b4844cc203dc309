"""The SDK against a real ``lighten-server`` with its workers, over a local folder."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lighten
from lighten import errors
from lighten import v1 as pb
from tests.support.lighten_server import LightenServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightenServer]:
    settings = {"LIGHTEN_EXECUTOR__CPU_SLOTS": "1", "LIGHTEN_EXECUTOR__WARM_WORKERS": "0"}
    with LightenServer(tmp_path_factory.mktemp("server"), settings) as running:
        yield running


@pytest.fixture
def client(server: LightenServer) -> Iterator[lighten.Client]:
    with lighten.Client(server.target) as connected:
        yield connected


@pytest.fixture
def spec(client: lighten.Client, tmp_path: Path) -> pb.JobSpec:
    """Return a spec whose model and data were uploaded."""
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x" * 100_000)
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    for number in range(3):
        (images / "cat" / f"{number}.jpg").write_bytes(b"jpg")
    uploaded, folder = client.upload(model), client.upload(images)
    return lighten.load_spec(
        {
            "model": {
                "artifact": {"uri": uploaded.uri, "sha256": uploaded.sha256},
                "format": "onnx",
            },
            "calibration": {"data": {"uri": folder.uri}, "format": "image_folder"},
            "plan": {"steps": [{"calibrate": {}}]},
            "labels": {"team": "vision"},
        }
    )


def test_a_job_from_upload_to_delete(client: lighten.Client, spec: pb.JobSpec) -> None:
    assert client.submit(spec, validate_only=True).name == ""
    job = client.submit(spec, request_id="one")
    assert client.submit(spec, request_id="one").name == job.name
    assert [item.name for item in client.list('labels.team = "vision"')] == [job.name]
    assert client.get(job.name).spec == spec

    changes = client.watch_jobs("labels.team = vision")
    assert next(changes).job.name == job.name
    assert next(changes).HasField("synced")
    client.cancel(job.name, "not needed")
    changes.close()

    with pytest.raises(lighten.JobCancelled):
        client.result(job.name, timeout=60)
    with pytest.raises(errors.FailedPrecondition) as caught:
        client._download_url(pb.CreateDownloadUrlRequest(job=job.name, artifact="x"))
    assert caught.value.reason == "NO_RESULT"
    client.delete(job.name)
    with pytest.raises(errors.NotFound):
        client.get(job.name)


def test_a_refused_spec_names_its_fields(client: lighten.Client, spec: pb.JobSpec) -> None:
    spec.model.format = pb.MODEL_FORMAT_STATE_DICT
    spec.calibration.max_samples = -1
    with pytest.raises(errors.InvalidArgument) as caught:
        client.submit(spec)
    assert "spec.calibration.max_samples" in {item.field for item in caught.value.violations}


def test_a_watch_outlives_a_server_that_is_killed(
    server: LightenServer, client: lighten.Client, spec: pb.JobSpec
) -> None:
    job = client.submit(spec)
    lost = threading.Event()
    watch = client.watch(job.name, on_reconnect=lambda error, delay: lost.set())
    seen = [next(watch).sequence]

    def kill_and_start_again() -> None:
        server.kill()
        lost.wait(10)
        server.start()

    thread = threading.Thread(target=kill_and_start_again)
    thread.start()
    seen += [event.sequence for event in watch]
    thread.join()

    assert lost.is_set()
    ended = client.get(job.name)
    assert seen == list(range(1, ended.last_sequence + 1))
    # The uploaded bytes are no model, which the worker found while the server was away or after.
    assert ended.state == pb.JOB_STATE_FAILED
    assert ended.error.kind == pb.ERROR_KIND_USER


async def test_aio_upload_and_wait(server: LightenServer, spec: pb.JobSpec, tmp_path: Path) -> None:
    async with lighten.aio.Client(server.target) as client:
        uploaded = await client.upload(tmp_path / "model.onnx")
        assert uploaded.bytes == 100_000
        job = await client.submit(spec)
        await client.cancel(job.name)
        assert (await client.wait(job.name, timeout=60)).state == pb.JOB_STATE_CANCELLED
