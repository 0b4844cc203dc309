"""Both clients against a real gRPC server whose faults are written down."""

import asyncio
import threading
import time
from pathlib import Path

import grpc
import pytest

import lighten
from lighten import errors
from lighten import v1 as pb
from lighten.spec import load_spec
from tests.support.sample_job import (
    FILES,
    REPORT,
    SPEC,
    events,
    finished_job,
    report_artifact,
    state,
)
from tests.support.scripted_service import JOB, Script, ScriptedService


@pytest.fixture
def service():
    with ScriptedService() as service:
        yield service


@pytest.fixture
def client(service):
    with lighten.Client(service.target, timeout=10) as client:
        yield client


@pytest.fixture
async def aio_client(service):
    async with lighten.aio.Client(service.target, timeout=10) as client:
        yield client


def done(service: ScriptedService) -> None:
    service.add_job(finished_job(), events())
    service.store.files.update(FILES)


# --- unary calls --------------------------------------------------------------------------------


def test_submit_takes_messages_mappings_text_and_paths(service, client, tmp_path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    for spec in (load_spec(SPEC), {"model": {"format": "onnx"}}, SPEC, path, str(path)):
        assert client.submit(spec).name == JOB

    ids = [request.request_id for request in service.requests]
    assert len(set(ids)) == 5
    assert all(len(item) == 36 for item in ids)
    client.submit(SPEC, request_id="mine", validate_only=True)
    assert service.requests[-1].request_id == "mine"
    assert service.requests[-1].validate_only
    assert service.requests[-1].parent == "projects/default"


def test_a_repeated_create_carries_the_same_request_id(service, client) -> None:
    service.unavailable = 2

    assert client.submit(SPEC).name == JOB
    assert len(service.requests) == 3
    assert len({request.request_id for request in service.requests}) == 1


def test_delete_is_not_repeated(service, client) -> None:
    done(service)
    service.unavailable = 1
    with pytest.raises(errors.Unavailable):
        client.delete(JOB)
    assert len(service.requests) == 1

    client.delete(JOB.rpartition("/")[2])
    assert not service.jobs


def test_an_error_carries_reason_violations_and_metadata(client) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.submit(pb.JobSpec())

    error = caught.value
    assert error.reason == "INVALID_FIELDS"
    assert error.field == "spec.model.format"
    assert error.violations == (errors.Violation("spec.model.format", "must be set"),)
    assert error.metadata == {"a": "b"}
    assert str(error) == "the request has 1 fault\n  spec.model.format: must be set"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_no_server_is_a_typed_error_that_names_the_address() -> None:
    with (
        lighten.Client("127.0.0.1:1", timeout=2) as client,
        pytest.raises((errors.Unavailable, errors.DeadlineExceeded)) as caught,
    ):
        client.get("x")
    assert "127.0.0.1:1" in caught.value.message


@pytest.mark.parametrize("target", ["", "http://127.0.0.1:1", " x:1"])
def test_a_target_that_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="HOST:PORT"):
        lighten.Client(target)


def test_list_reads_page_after_page(service, client) -> None:
    for number in range(5):
        service.add_job(pb.Job(name=f"projects/default/jobs/{number}"), [])

    assert [job.name[-1] for job in client.list("state = RUNNING")] == list("01234")
    assert len(service.requests) == 3
    assert service.requests[0].filter == "state = RUNNING"


def test_cancel_and_a_precondition_that_fails(service, client) -> None:
    done(service)
    with pytest.raises(errors.FailedPrecondition) as caught:
        client.cancel(JOB)
    assert caught.value.reason == "JOB_FINISHED"


def test_result_returns_or_raises_what_happened(service, client) -> None:
    done(service)
    assert client.result(JOB).optimized.file_bytes == 3_600_000

    failure = pb.JobError(
        reason="OUT_OF_MEMORY", message="ask for more", field="resources.memory_bytes"
    )
    failed = pb.Job(name=f"{JOB}f", state=pb.JOB_STATE_FAILED, error=failure)
    service.add_job(failed, [state(pb.JOB_STATE_FAILED)])
    with pytest.raises(lighten.JobFailed) as caught:
        client.result(failed.name)
    assert caught.value.error == failure
    assert caught.value.field == "resources.memory_bytes"
    assert caught.value.reason == "OUT_OF_MEMORY"

    cancelled = pb.Job(name=f"{JOB}c", state=pb.JOB_STATE_CANCELLED)
    service.add_job(cancelled, [state(pb.JOB_STATE_CANCELLED)])
    with pytest.raises(lighten.JobCancelled):
        client.result(cancelled.name)


def test_wait_ends_at_its_timeout_and_tells_every_event(service, client) -> None:
    done(service)
    seen = []
    assert client.wait(JOB, on_event=lambda event: seen.append(event.sequence)).name == JOB
    assert seen == list(range(1, 14))

    service.add_job(pb.Job(name=f"{JOB}q", state=pb.JOB_STATE_QUEUED), [state(pb.JOB_STATE_QUEUED)])
    start = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.5 s"):
        client.wait(f"{JOB}q", timeout=0.5)
    assert time.monotonic() - start < 3


# --- watch --------------------------------------------------------------------------------------

CHAOS = Script(
    breaks=[(1, "unavailable"), (4, "end"), (5, "internal"), (9, "unavailable"), (12, "end")],
    repeats=2,
)


def test_watch_misses_and_repeats_nothing_over_broken_streams(service, client) -> None:
    done(service)
    service.script = Script(breaks=[*CHAOS.breaks], repeats=2)
    told = []
    watch = client.watch(JOB, on_reconnect=lambda error, delay: told.append(error.reason))

    assert [event.sequence for event in watch] == list(range(1, 14))
    assert len(told) == 5
    assert watch.last_sequence == 13
    assert watch.snapshot.job.name == JOB
    asked = [request.after_sequence for request in service.requests]
    assert asked == [0, 1, 4, 5, 9, 12]


async def test_aio_watch_misses_and_repeats_nothing(service, aio_client) -> None:
    done(service)
    service.script = Script(breaks=[*CHAOS.breaks], repeats=2)
    watch = aio_client.watch(JOB)

    assert [event.sequence async for event in watch] == list(range(1, 14))
    assert [request.after_sequence for request in service.requests] == [0, 1, 4, 5, 9, 12]


def test_watch_asks_again_for_events_that_one_stream_left_out(service, client) -> None:
    service.add_job(pb.Job(name=JOB, state=pb.JOB_STATE_RUNNING), events())
    service.script = Script(breaks=[(7, "end")], missing={5, 6}, gap_once=True)

    assert [event.sequence for event in client.watch(JOB)] == list(range(1, 14))


def test_watch_resumes_and_ends_after_the_terminal_event(service, client) -> None:
    done(service)

    assert [event.sequence for event in client.watch(JOB, 11)] == [12, 13]
    assert list(client.watch(JOB, 13)) == []


def test_watch_is_live(service, client) -> None:
    service.add_job(pb.Job(name=JOB, state=pb.JOB_STATE_QUEUED), [state(pb.JOB_STATE_QUEUED)])
    watch = client.watch(JOB)
    assert next(watch).sequence == 1
    timer = threading.Timer(0.1, service.append, (JOB, state(pb.JOB_STATE_SUCCEEDED)))
    timer.start()
    assert next(watch).sequence == 2
    with pytest.raises(StopIteration):
        next(watch)


def test_watch_survives_a_restart_of_the_server(service, client) -> None:
    story = events()
    service.add_job(pb.Job(name=JOB, state=pb.JOB_STATE_RUNNING), story[:6])
    watch = client.watch(JOB)
    seen = [next(watch).sequence for _ in range(6)]
    service.restart()
    for event in story[6:]:
        service.append(JOB, event)
    seen += [event.sequence for event in watch]

    assert seen == list(range(1, 14))


def test_watch_of_a_job_that_is_not_there(client) -> None:
    with pytest.raises(errors.NotFound) as caught:
        next(client.watch("nope"))
    assert caught.value.reason == "JOB_NOT_FOUND"


def test_watch_jobs_tells_what_a_break_hid(service, client) -> None:
    def jobs(*names: str) -> list[pb.WatchJobsResponse]:
        found = [pb.WatchJobsResponse(job=pb.Job(name=name)) for name in names]
        return [*found, pb.WatchJobsResponse(synced=pb.Synced())]

    service.changes = [jobs("a", "b"), jobs("b")]
    changes = client.watch_jobs("state = RUNNING")
    kinds = [next(changes) for _ in range(6)]
    changes.close()

    assert [kind.WhichOneof("payload") for kind in kinds] == [
        *("job", "job", "synced"),
        *("job", "removed", "synced"),
    ]
    assert kinds[4].removed == "a"


# --- files --------------------------------------------------------------------------------------


def test_download_checks_resumes_and_leaves_right_files_alone(service, client, tmp_path) -> None:
    done(service)
    service.store.hang_up = True
    paths = client.download(JOB, tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in paths] == list(FILES)
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert service.store.reads == 3
    client.download(JOB, tmp_path)
    assert service.store.reads == 3
    paths[0].write_bytes(b"other")
    client.download(JOB, tmp_path)
    assert service.store.reads == 4


def test_download_refuses_other_bytes_and_leaves_nothing(service, client, tmp_path) -> None:
    done(service)
    service.store.files["model.qdq.onnx"] = b"x" * 150_000
    with pytest.raises(errors.TransferError) as caught:
        client.download(JOB, tmp_path)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", ""])
def test_download_never_leaves_its_folder(service, client, tmp_path: Path, name: str) -> None:
    job = finished_job()
    job.result.artifacts[0].name = name
    service.add_job(job, events())
    with pytest.raises(errors.TransferError) as caught:
        client.download(JOB, tmp_path / "out")
    assert caught.value.reason == "UNSAFE_NAME"


def test_upload_of_a_file_and_of_a_folder(service, client, tmp_path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two")
    told = []
    uploaded = client.upload(tmp_path, on_progress=lambda *entry: told.append(entry))
    assert uploaded.uri == "s3://bucket/uploads/u1/"
    assert (uploaded.sha256, uploaded.files, uploaded.bytes) == ("", 2, 6)
    assert service.store.files == {"u1/b.jpg": b"two", "u1/cats/1.jpg": b"one"}
    assert told[-1] == ("cats/1.jpg", 3, 3)

    single = client.upload(tmp_path / "b.jpg")
    assert single.uri == "s3://bucket/uploads/u1/b.jpg"
    assert single.sha256 == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_upload_of_what_is_not_there(client, tmp_path) -> None:
    with pytest.raises(errors.InvalidArgument, match="no file"):
        client.upload(tmp_path / "nope")
    with pytest.raises(errors.InvalidArgument, match="holds no files"):
        client.upload(tmp_path)


# --- asyncio ------------------------------------------------------------------------------------


async def test_aio_client_does_what_the_sync_one_does(service, aio_client, tmp_path) -> None:
    done(service)
    assert (await aio_client.submit(SPEC)).name == JOB
    assert (await aio_client.get(JOB)).name == JOB
    assert [job.name async for job in aio_client.list()] == [JOB]
    assert (await aio_client.result(JOB)).attempt == 1
    assert (await aio_client.capabilities()).server_version == "1.2.3"
    assert [item.name for item in await aio_client.artifacts(JOB)] == list(FILES)
    paths = await aio_client.download(JOB, tmp_path)
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert (await aio_client.upload(paths[0])).files == 1
    with pytest.raises(errors.FailedPrecondition):
        await aio_client.cancel(JOB)
    await aio_client.delete(JOB)
    with pytest.raises(errors.NotFound):
        await aio_client.get(JOB)


async def test_both_clients_read_the_report(service, client, aio_client) -> None:
    done(service)
    with pytest.raises(errors.NotFound) as caught:
        client.report(JOB)
    assert caught.value.reason == "REPORT_NOT_FOUND"

    service.jobs[JOB].result.artifacts.append(report_artifact())
    service.store.files["report.html"] = REPORT
    assert await asyncio.to_thread(client.report, JOB) == REPORT.decode()
    assert await aio_client.report(JOB) == REPORT.decode()
    service.store.files["report.html"] = REPORT.swapcase()
    with pytest.raises(errors.TransferError):
        await aio_client.report(JOB)


async def test_aio_wait_can_be_cancelled(service, aio_client) -> None:
    service.add_job(pb.Job(name=JOB, state=pb.JOB_STATE_QUEUED), [state(pb.JOB_STATE_QUEUED)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(aio_client.wait(JOB), 0.3)
    with pytest.raises(errors.DeadlineExceeded):
        await aio_client.wait(JOB, timeout=0.3)
