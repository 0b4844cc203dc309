"""What the SQL store does beyond the port: locking, formats, migrations, a database that fails."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, make_url, update

from lighten import v1 as pb
from lighten_service.jobs.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.store import open_store
from lighten_service.store.backend import Backend
from lighten_service.store.batch import Batch, LostRace, Reads
from lighten_service.store.commit import Committer, Refused
from lighten_service.store.migrate import create, migrate, upgrade
from lighten_service.store.schema import FORMAT_VERSION, jobs, metadata
from lighten_service.store.sql import SqlJobStore
from lighten_service.store.sqlite import open_sqlite
from lighten_service.store.writes import Delete, Write
from lighten_service.telemetry.metrics import Metrics


class Wall:
    now = staticmethod(time.time)


def new_job(job_id: str) -> JobRecord:
    job = pb.Job(name=f"projects/default/jobs/{job_id}", state=pb.JOB_STATE_QUEUED)
    return JobRecord("default", job_id, job)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "lighten.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def migrated(path: Path) -> Backend:
    backend = open_sqlite(make_url(f"sqlite:///{path}"))
    with backend.writer.begin() as connection:
        migrate(connection)
    return backend


@pytest.mark.parametrize(
    "url", ["", "lighten.db", "sqlite://", "sqlite:///:memory:", "mysql://host/db", "sqlite+x:///a"]
)
async def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await open_store(url, clock=Wall())
    assert raised.value.reason == "INVALID_STORE_URL"


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot open the database") as raised:
        await open_store(f"sqlite:///{tmp_path}/file/lighten.db", clock=Wall())
    assert raised.value.reason == "STORE_UNAVAILABLE"


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lighten.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        await open_store(f"sqlite:///{tmp_path}/lighten.db", clock=Wall())


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(path: Path) -> None:
    backend = migrated(path)
    with backend.writer.connect() as connection:
        # 2: FULL. Not even a power cut takes back what was acknowledged.
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    backend.close()


async def test_only_the_owner_can_read_the_database(url: str, path: Path) -> None:
    store = await open_store(url, clock=Wall())
    await store.create(new_job("a"), [])
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    await store.close()


async def test_one_server_a_file(url: str) -> None:
    store = await open_store(url, clock=Wall())
    with pytest.raises(FailedPrecondition, match=str(os.getpid())) as raised:
        await open_store(url, clock=Wall())
    assert raised.value.reason == "STORE_LOCKED"
    await store.close()
    await (await open_store(url, clock=Wall())).close()


async def test_a_killed_process_gives_the_file_up(url: str) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from lighten_service.store import open_store\n"
        "class Wall: now = staticmethod(time.time)\n"
        "async def main():\n"
        "    await open_store(sys.argv[1], clock=Wall())\n"
        "    print('open', flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(FailedPrecondition, match=str(child.pid)):
            await open_store(url, clock=Wall())
        child.kill()
        child.wait()
    await (await open_store(url, clock=Wall())).close()


def tables_after(path: Path, make: Callable[[Connection], None]) -> dict[str, str]:
    """Return the definition of every table and index, less the layout of its text."""
    backend = open_sqlite(make_url(f"sqlite:///{path}"))
    with backend.writer.begin() as connection:
        make(connection)
        migrate(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        master = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql > ''")
        tables = {name: "".join(sql.split()).replace('"', "") for name, sql in master}
    backend.close()
    # Alembic names its primary key.
    tables["alembic_version"] = tables["alembic_version"].replace(
        "CONSTRAINTalembic_version_pkc", ""
    )
    return tables


def test_migrations_lead_to_the_tables_that_an_empty_database_gets(tmp_path: Path) -> None:
    migrated = tables_after(tmp_path / "a.db", lambda connection: upgrade(connection, None))
    assert len(migrated) > 10
    assert migrated == tables_after(tmp_path / "b.db", create)


async def test_a_database_of_a_newer_lighten_is_refused(url: str, path: Path) -> None:
    await (await open_store(url, clock=Wall())).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(FailedPrecondition, match="9999") as raised:
        await open_store(url, clock=Wall())
    assert raised.value.reason == "STORE_FORMAT_TOO_NEW"


async def test_a_row_of_a_newer_lighten_is_refused_alone(url: str, path: Path) -> None:
    store = await open_store(url, clock=Wall())
    await store.create(new_job("a"), [])
    await store.create(new_job("b"), [])
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE jobs SET format_version = ? WHERE job_id = 'a'", [FORMAT_VERSION + 1]
        )
    connection.close()

    store = await open_store(url, clock=Wall())
    for call in (store.get("default", "a"), store.update("a", lambda record: None), store.live()):
        with pytest.raises(FailedPrecondition, match="job a") as raised:
            await call
        assert raised.value.reason == "STORE_FORMAT_TOO_NEW"
    assert (await store.update("b", lambda record: Change(record))).revision == 2
    await store.close()


async def test_a_full_disk_is_told_and_overcome(path: Path) -> None:
    backend = migrated(path)
    metrics = Metrics()
    store = SqlJobStore(backend, Wall(), metrics)
    await store.create(new_job("a"), [])

    def limit(pages: int) -> None:
        with backend.writer.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    limit(1)
    big = pb.JobEvent(log=pb.LogLine(message="x" * 100_000))
    with pytest.raises(Unavailable, match="full") as raised:
        await store.update("a", lambda record: Change(record, [big]))
    assert raised.value.reason == "STORE_UNAVAILABLE"
    assert raised.value.retryable
    assert metrics.registry.get_sample_value("lighten_store_errors_total") == 1
    limit(1_000_000)
    assert (await store.update("a", lambda record: Change(record, [big]))).job.last_sequence == 1
    assert len(await store.events("a", 0, 10)) == 1
    await store.close()


@dataclass(frozen=True)
class Racing(Write[str]):
    """Loses the first races."""

    losses: Iterator[int]

    def apply(self, batch: Batch) -> str:
        if next(self.losses, None) is not None:
            raise LostRace
        return "written"


@pytest.mark.parametrize(("losses", "expected"), [(5, "written"), (1000, "STORE_CONFLICT")])
def test_a_lost_race_is_run_again(path: Path, losses: int, expected: str) -> None:
    backend = migrated(path)
    written = Committer(backend.writer, Wall(), Metrics()).run([Racing(iter(range(losses)))])
    backend.close()
    (outcome,) = written.outcomes
    assert (outcome.error.reason if isinstance(outcome, Refused) else outcome) == expected


def test_a_row_that_changed_since_it_was_read_is_not_overwritten(path: Path) -> None:
    backend = migrated(path)
    with backend.writer.begin() as connection:
        batch = Batch(connection, Reads(), now=1.0)
        batch.create(new_job("a"), [], 0)
        batch.flush()
    with backend.writer.begin() as connection:
        batch = Batch(connection, Reads(job_ids={"a"}), now=1.0)
        batch.update("a", lambda record: Change(record))
        connection.execute(update(jobs).values(revision=7))
        with pytest.raises(LostRace):
            batch.flush()
    backend.close()


def test_requests_of_a_group_see_what_those_before_them_did(path: Path) -> None:
    def run(record: JobRecord) -> Change:
        job = pb.Job(name=record.job.name, state=pb.JOB_STATE_RUNNING)
        return Change(replace(record, job=job))

    backend = migrated(path)
    reads = Reads(job_ids={"a"}, queues={"default"})
    with backend.writer.begin() as connection:
        batch = Batch(connection, reads, now=1.0)
        batch.create(new_job("a"), [], 1)
        batch.update("a", run)
        batch.create(new_job("b"), [], 1)
        with pytest.raises(ResourceExhausted):
            batch.create(new_job("c"), [], 1)
        Delete("a").apply(batch)
        with pytest.raises(NotFound):
            batch.update("a", run)
        batch.create(new_job("a"), [], 2)
        batch.flush()
    assert [change.job_id for change in batch.changes] == ["a", "a", "b", "a", "a"]
    backend.close()


async def test_commits_and_events_are_counted(url: str) -> None:
    registry = CollectorRegistry()
    store = await open_store(url, clock=Wall(), metrics=Metrics(registry))
    await store.create(new_job("a"), [pb.JobEvent(log=pb.LogLine(message="x"))] * 3)
    await store.close()
    log = registry.get_sample_value("lighten_events_appended_total", {"payload": "log"})
    assert log == 3
    assert registry.get_sample_value("lighten_store_commit_requests_sum") == 1
