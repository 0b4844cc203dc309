"""Databases that earlier versions wrote, and what must be read from them.

A new migration or FORMAT_VERSION adds a file, named after both, and leaves those before it. To
write one: ``python tests/golden/test_golden_job_store.py tests/golden/job_store_NNNN_F.db``
"""

import asyncio
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lighten import v1 as pb
from lighten_service.jobs.filter import Filter, Term
from lighten_service.jobs.ports import JobStore
from lighten_service.jobs.record import Attempt, Change, JobRecord, Launch
from lighten_service.store import open_store

FOLDER = Path(__file__).parent
RUNNING_ID = "01jcy0000000000000000000aa"
FAILED_ID = "01jcy0000000000000000000bb"


class Fixed:
    @staticmethod
    def now() -> float:
        return 1_732_200_000.25


def job(job_id: str, state: pb.JobState.ValueType) -> pb.Job:
    spec = pb.JobSpec(display_name="MobileNetV2", labels={"team": "vision"})
    job = pb.Job(
        name=f"projects/default/jobs/{job_id}",
        state=state,
        display_name=spec.display_name,
        labels=spec.labels,
        techniques=["fold_batch_norms", "calibrate"],
        model_sha256="0123456789abcdef" * 4,
        spec=spec,
        resolved_spec=spec,
    )
    job.create_time.FromNanoseconds(1_732_199_999_123_456_789)
    return job


def running() -> JobRecord:
    files = [pb.InputFile(path="model.onnx", bytes=14_000_000, etag="e")]
    return JobRecord(
        project="default",
        job_id=RUNNING_ID,
        job=job(RUNNING_ID, pb.JOB_STATE_RUNNING),
        request_id="request-1",
        inputs=(pb.ResolvedInput(field="model.artifact", uri="s3://m/model.onnx", files=files),),
        launch=Launch(2, "boot:123:456", spent=True),
        attempts=(Attempt(1, 1, "boot:99:1", acked_event=4), Attempt(2, 2, "boot:123:456")),
        not_before=1_732_199_999.5,
        run_seconds=12.5,
        running_since=1_732_200_000.0,
        last_heartbeat=1_732_200_000.125,
        step_result=pb.StepResultRef(
            attempt=1,
            step_id="calibrate",
            files=[pb.StepFile(path="decisions.json", bytes=3_000_000_000, sha256="ab" * 32)],
        ),
    )


def expected(file: Path) -> JobRecord:
    """Return what the running job of a file is read as."""
    if format_of(file) < 2:
        return replace(running(), launch=Launch(2, "boot:123:456"), step_result=None)
    return running()


def format_of(file: Path) -> int:
    return int(file.stem.split("_")[3])


def failed() -> JobRecord:
    failed = job(FAILED_ID, pb.JOB_STATE_FAILED)
    failed.end_time.FromSeconds(1_732_199_000)
    failed.error.reason = "OUT_OF_MEMORY"
    return JobRecord(project="default", job_id=FAILED_ID, job=failed)


EVENTS = (
    pb.JobEvent(state_changed=pb.StateChanged(to=pb.JOB_STATE_QUEUED)),
    pb.JobEvent(attempt=1, progress=pb.Progress(done=3, total=10, unit="batches", fraction=0.25)),
    pb.JobEvent(attempt=1, log=pb.LogLine(message="52 batch norms folded")),
)


async def write(store: JobStore) -> None:
    await store.create(running(), EVENTS[:1])
    await store.update(RUNNING_ID, lambda record: Change(record, EVENTS[1:]))
    await store.create(failed(), EVENTS)
    await store.trim(1_732_200_000)
    await store.secret("signing", lambda: b"golden secret")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("job_store_*.db")), ids=lambda file: file.stem)
async def test_a_database_of_an_earlier_version_is_read(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "lighten.db")
    store = await open_store(f"sqlite:///{tmp_path}/lighten.db", clock=Fixed())

    record = await store.get("default", RUNNING_ID)
    assert record.revision == 2
    assert without_store_fields(record) == expected(file)
    assert without_store_fields(await store.get("default", FAILED_ID)) == failed()
    assert [record.job_id for record in await store.live()] == [RUNNING_ID]
    where = Filter((Term("labels.team", "=", "vision"), Term("technique", "=", "calibrate")))
    page = await store.list_jobs("default", where, limit=10)
    assert [record.job_id for record in page] == [FAILED_ID, RUNNING_ID]

    events = await store.events(RUNNING_ID, 0, 10)
    assert [event.sequence for event in events] == [1, 2, 3]
    assert events[1].progress == EVENTS[1].progress
    assert events[2].time.ToNanoseconds() == 1_732_200_000_250_000_000
    assert [event.sequence for event in await store.events(FAILED_ID, 0, 10)] == [1]
    assert await store.first_retained(FAILED_ID) == 4
    assert await store.secret("signing", lambda: b"new") == b"golden secret"

    same = await store.create(replace(expected(file), job_id="another"), EVENTS)
    assert same == replace(record, inputs=())
    updated = await store.update(RUNNING_ID, lambda record: Change(record, EVENTS))
    assert (updated.revision, updated.job.last_sequence) == (3, 6)
    await store.close()


def test_there_is_a_database_of_the_newest_version() -> None:
    from lighten_service.store.schema import FORMAT_VERSION, REVISION

    assert (FOLDER / f"job_store_{REVISION}_{FORMAT_VERSION}.db").exists()


def without_store_fields(record: JobRecord) -> JobRecord:
    job = pb.Job()
    job.CopyFrom(record.job)
    job.ClearField("last_sequence")
    job.ClearField("update_time")
    return replace(record, revision=0, job=job)


async def main(path: str) -> None:
    store = await open_store(f"sqlite:///{path}", clock=Fixed())
    await write(store)
    await store.close()
    Path(f"{path}.lock").unlink()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
