"""What every executor promises, run against each one. Add an executor as a harness of its own."""

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from lighten import v1 as pb
from lighten_service.executors.local import LocalExecutor, LocalOptions
from lighten_service.executors.local.process import ProcessId, WorkerProcess
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.ports import Executor, LaunchEnd, LaunchRef, LaunchState
from tests.support.executor_harness import MIB, Harness, until


class LocalHarness(Harness):
    def __init__(self, folder: Path, *, use_cgroups: bool, warm_workers: int) -> None:
        self.options = LocalOptions(
            data_dir=folder,
            server="127.0.0.1:1",
            cpu_slots=2,
            gpus=1,
            warm_workers=warm_workers,
            command=(
                *(sys.executable, "-P"),
                str(Path(__file__).parents[1] / "support" / "plain_worker.py"),
            ),
            use_cgroups=use_cgroups,
            memory_interval=0.1,
            disk_interval=0.1,
            max_log_bytes=64 << 10,
        )
        super().__init__()

    def make(self) -> Executor:
        return LocalExecutor(self.options)

    def folder(self, ref: LaunchRef) -> Path:
        return self.options.data_dir / "workers" / f"{ref.job_id}-{ref.launch}"

    async def instance(self, ref: LaunchRef) -> str:
        file = self.folder(ref) / "instance"
        return await until(lambda: (file.exists() and file.read_text()) or None)

    def pid(self, instance: str) -> int:
        return int(instance.split(":")[1])

    async def crash_server(self) -> None:
        await self.executor.close()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@asynccontextmanager
async def local_harness(folder: Path, kind: str) -> AsyncIterator[LocalHarness]:
    harness = LocalHarness(folder, use_cgroups=kind == "cold", warm_workers=kind == "warm")
    await harness.executor.open(harness.listen)
    yield harness
    for file in folder.glob("workers/*/instance"):
        pid = harness.pid(file.read_text())
        if not gone(pid):
            psutil.Process(pid).kill()
    await harness.executor.close()


@pytest.fixture(params=["warm", "cold"])
async def local(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[LocalHarness]:
    async with local_harness(tmp_path, request.param) as harness:
        yield harness


@pytest.fixture(params=["warm", "cold", pytest.param("kubernetes", marks=pytest.mark.kubernetes)])
async def harness(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    if request.param != "kubernetes":
        async with local_harness(tmp_path, request.param) as harness:
            yield harness
        return
    # What it needs takes seconds to import.
    from tests.support.cluster_harness import cluster_harness

    request.getfixturevalue("node")
    async with cluster_harness(request.getfixturevalue("kubectl")) as harness:
        yield harness


async def test_worker_runs_until_it_is_asked_to_end(harness: Harness) -> None:
    ref = await harness.start("sleep")
    instance = await harness.instance(ref)
    assert (await harness.executor.status(ref)).state is LaunchState.PLACED
    assert await harness.executor.holds(ref, instance)
    await harness.executor.stop(ref, grace_seconds=10)
    status = await harness.end(ref)
    assert status.end is LaunchEnd.STOPPED
    assert not await harness.executor.holds(ref, instance)


async def test_worker_that_does_not_listen_is_killed_after_the_grace(harness: Harness) -> None:
    ref = await harness.start("deaf")
    pid = harness.pid(await harness.instance(ref))
    await harness.executor.stop(ref, grace_seconds=0.2)
    await harness.executor.stop(ref, grace_seconds=60)  # again: the shorter grace stays
    assert (await harness.end(ref)).end is LaunchEnd.STOPPED
    assert gone(pid)


@pytest.mark.parametrize(
    ("token", "end", "fact"),
    [
        ("exit 0", LaunchEnd.EXITED, ("exit_code", "0")),
        ("exit 7", LaunchEnd.EXITED, ("exit_code", "7")),
        ("exit 3", LaunchEnd.DISRUPTED, ("exit_code", "3")),
        ("kill9", LaunchEnd.CRASHED, ("signal", "SIGKILL")),
    ],
)
async def test_end_has_its_reason(
    harness: Harness, token: str, end: LaunchEnd, fact: tuple[str, str]
) -> None:
    status = await harness.end(await harness.start(token))
    assert status.end is end
    assert fact in status.metadata
    assert status.detail


async def test_out_of_memory_has_its_figures(harness: Harness) -> None:
    limit = 256 * MIB
    status = await harness.end(await harness.start("eat 512", memory_bytes=limit))
    assert status.end is LaunchEnd.OUT_OF_MEMORY
    assert dict(status.metadata)["limit_bytes"] == str(limit)


async def test_launch_again_is_the_same_launch(harness: Harness) -> None:
    request = harness.request("sleep")
    first = await harness.executor.launch(request)
    ref = LaunchRef(request.job_id, request.launch, first)
    instance = await harness.instance(ref)
    assert await harness.executor.launch(request) == first
    assert await harness.instance(ref) == instance
    await harness.executor.stop(ref, grace_seconds=0)
    await harness.end(ref)


@pytest.mark.parametrize("resources", [{"gpus": 8}, {"memory_bytes": 1 << 60}])
async def test_what_can_never_run_is_refused(harness: Harness, resources: dict[str, int]) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        harness.executor.admit(pb.Resources(**resources))
    assert caught.value.field == f"resources.{next(iter(resources))}"


async def test_stranger_is_not_held(harness: Harness) -> None:
    ref = await harness.start("sleep")
    instance = await harness.instance(ref)
    assert not await harness.executor.holds(ref, "some-boot:1:1")
    other = LaunchRef(ref.job_id, ref.launch + 1, "")
    assert not await harness.executor.holds(other, instance)
    await harness.executor.stop(ref, grace_seconds=0)
    await harness.end(ref)


async def test_unknown_launch(harness: Harness) -> None:
    ref = LaunchRef("never", 1, "")
    assert (await harness.executor.status(ref)).state is LaunchState.UNKNOWN
    await harness.executor.stop(ref, grace_seconds=0)


async def test_running_worker_is_adopted(harness: Harness) -> None:
    ref = await harness.start("sleep")
    instance = await harness.instance(ref)
    await harness.crash_server()
    assert not gone(harness.pid(instance))
    await harness.restart()
    await harness.executor.adopt([ref])
    assert (await harness.executor.status(ref)).state is LaunchState.PLACED
    assert await harness.executor.holds(ref, instance)
    await harness.executor.stop(ref, grace_seconds=1)
    assert (await harness.end(ref)).end is LaunchEnd.STOPPED


async def test_worker_that_ended_meanwhile_is_reported(harness: Harness) -> None:
    ref = await harness.start("sleep")
    pid = harness.pid(await harness.instance(ref))
    await harness.crash_server()
    psutil.Process(pid).kill()
    await until(lambda: gone(pid))
    await harness.restart()
    await harness.executor.adopt([ref])
    assert (await harness.end(ref)).end is LaunchEnd.CRASHED


async def test_worker_of_no_live_job_is_stopped(harness: Harness) -> None:
    ref = await harness.start("deaf")
    pid = harness.pid(await harness.instance(ref))
    await harness.crash_server()
    await harness.restart()
    await harness.executor.adopt([])
    await until(lambda: gone(pid))


# --- of this machine alone --------------------------------------------------------------------


def test_a_pid_that_is_a_thread_by_now_is_a_process_gone() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(ProcessLookupError):
            WorkerProcess(ProcessId(thread.native_id, "an earlier boot", 1))
        # Also when it becomes one after the first look.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
        with pytest.raises(ProcessLookupError):
            WorkerProcess(ProcessId(thread.native_id, boot, int(stat[19])))
    finally:
        end.set()
        thread.join()


async def test_slots_are_given_and_taken_back(local: LocalHarness) -> None:
    small = pb.Resources()
    refs = [await local.start("sleep") for _ in range(2)]
    reason = local.executor.admit(small)
    assert reason is not None
    assert "slot" in reason
    assert local.executor.admit(pb.Resources(gpus=1)) is None
    await local.executor.stop(refs[0], grace_seconds=0)
    await local.end(refs[0])
    assert local.executor.admit(small) is None
    await local.executor.stop(refs[1], grace_seconds=0)
    await local.end(refs[1])


async def test_adopted_worker_has_its_slot_again(local: LocalHarness) -> None:
    ref = await local.start("sleep")
    await local.instance(ref)
    await local.crash_server()
    await local.restart()
    await local.executor.adopt([ref])
    other = await local.start("sleep")
    assert local.executor.admit(pb.Resources()) is not None
    for launch in (ref, other):
        await local.executor.stop(launch, grace_seconds=1)
        assert (await local.end(launch)).end is LaunchEnd.STOPPED


async def test_memory_in_use_is_told(local: LocalHarness) -> None:
    status = await local.end(await local.start("eat 512", memory_bytes=256 * MIB))
    assert int(dict(status.metadata)["used_bytes"]) >= 256 * MIB


async def test_nothing_of_a_launch_stays_but_its_log(local: LocalHarness) -> None:
    ref = await local.start("child")
    await local.end(ref)
    child = int((local.folder(ref) / "child").read_text())
    await until(lambda: gone(child))
    left = {file.name for file in local.folder(ref).iterdir()}
    assert left == {"worker.log", "end.json", "instance", "child"}


async def test_log_is_bounded(local: LocalHarness) -> None:
    ref = await local.start("print 300")
    log = local.folder(ref) / "worker.log"
    await until(lambda: log.with_name("worker.log.1").exists())
    await until(lambda: log.stat().st_size <= 64 << 10)
    await local.executor.stop(ref, grace_seconds=0)
    await local.end(ref)


async def test_idle_worker_is_used_and_replaced(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path, use_cgroups=False, warm_workers=1)
    await harness.executor.open(harness.listen)
    assert isinstance(harness.executor, LocalExecutor)
    warm = harness.executor._warm
    await until(lambda: warm._waiting or None)
    (idle,) = tmp_path.glob("workers/idle-*.log")
    inode = idle.stat().st_ino
    ref = await harness.start("sleep")
    assert (harness.folder(ref) / "worker.log").stat().st_ino == inode
    await until(lambda: warm._waiting or None)
    await harness.executor.stop(ref, grace_seconds=0)
    await harness.end(ref)
    await harness.executor.close()
    assert list(tmp_path.glob("workers/idle-*.log")) == []


async def test_worker_that_cannot_start(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path, use_cgroups=False, warm_workers=0)
    object.__setattr__(harness.options, "command", ("/no/such/program",))
    executor = harness.make()
    await executor.open(harness.listen)
    with pytest.raises(Exception, match="no worker process can be started") as caught:
        await executor.launch(harness.request("sleep"))
    assert getattr(caught.value, "reason", "") == "WORKER_START_FAILED"
    assert executor.admit(pb.Resources()) is None
    await executor.close()
