"""What every executor promises, run against each one. Add an executor as a harness of its own."""

import asyncio
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from lighten import v1 as pb
from lighten_service.executors.local import LocalExecutor, LocalOptions
from lighten_service.executors.local.process import ProcessId, WorkerProcess
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.ports import (
    Executor,
    LaunchEnd,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)

T = TypeVar("T")
MIB = 1 << 20
SECONDS = 20.0


class Harness(ABC):
    """One executor with the ways to look at its workers. Workers obey their token: see
    ``tests/support/plain_worker.py``.
    """

    def __init__(self) -> None:
        self.executor = self.make()
        self.heard: list[tuple[LaunchRef, LaunchStatus]] = []
        self._jobs = count(1)

    @abstractmethod
    def make(self) -> Executor:
        """Return an executor with two CPU slots, on the same ground as the one before."""

    @abstractmethod
    async def instance(self, ref: LaunchRef) -> str:
        """Return the instance id of a launch's worker."""

    @abstractmethod
    async def crash_server(self) -> None:
        """Lose the executor as a kill -9 of the server does."""

    async def listen(self, ref: LaunchRef, status: LaunchStatus) -> None:
        self.heard.append((ref, status))

    def request(self, token: str, **resources: int) -> LaunchRequest:
        job_id = f"{next(self._jobs):026d}"
        return LaunchRequest(
            project="default",
            job_id=job_id,
            name=f"projects/default/jobs/{job_id}",
            launch=1,
            token=token,
            resources=pb.Resources(**resources),
        )

    async def start(self, token: str, **resources: int) -> LaunchRef:
        request = self.request(token, **resources)
        handle = await self.executor.launch(request)
        return LaunchRef(request.job_id, request.launch, handle)

    async def end(self, ref: LaunchRef) -> LaunchStatus:
        """Return the end of a launch as the listener was told, and see that status agrees."""
        status = await until(lambda: self._end(ref))
        assert await self.executor.status(ref) == status
        return status

    async def restart(self) -> None:
        self.executor = self.make()
        self.heard.clear()
        await self.executor.open(self.listen)

    def _end(self, ref: LaunchRef) -> LaunchStatus | None:
        key = (ref.job_id, ref.launch)
        for heard, status in self.heard:
            if (heard.job_id, heard.launch) == key and status.state is LaunchState.ENDED:
                return status
        return None


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

    async def crash_server(self) -> None:
        await self.executor.close()


async def until(look: Callable[[], T | None]) -> T:
    async with asyncio.timeout(SECONDS):
        while (seen := look()) is None or seen is False:
            await asyncio.sleep(0.02)
        return seen


def pid_of(instance: str) -> int:
    return int(instance.split(":")[1])


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(params=["warm", "cold"])
async def harness(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[LocalHarness]:
    harness = LocalHarness(
        tmp_path, use_cgroups=request.param == "cold", warm_workers=request.param == "warm"
    )
    await harness.executor.open(harness.listen)
    yield harness
    for file in tmp_path.glob("workers/*/instance"):
        pid = pid_of(file.read_text())
        if not gone(pid):
            psutil.Process(pid).kill()
    await harness.executor.close()


async def test_worker_runs_until_it_is_asked_to_end(harness: Harness) -> None:
    ref = await harness.start("sleep")
    assert (await harness.executor.status(ref)).state is LaunchState.PLACED
    instance = await harness.instance(ref)
    assert await harness.executor.holds(ref, instance)
    await harness.executor.stop(ref, grace_seconds=10)
    status = await harness.end(ref)
    assert status.end is LaunchEnd.STOPPED
    assert not await harness.executor.holds(ref, instance)


async def test_worker_that_does_not_listen_is_killed_after_the_grace(harness: Harness) -> None:
    ref = await harness.start("deaf")
    pid = pid_of(await harness.instance(ref))
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
    figures = dict(status.metadata)
    assert int(figures["limit_bytes"]) == limit
    assert int(figures["used_bytes"]) >= limit


async def test_launch_again_is_the_same_launch(harness: Harness) -> None:
    request = harness.request("sleep")
    first = await harness.executor.launch(request)
    ref = LaunchRef(request.job_id, request.launch, first)
    instance = await harness.instance(ref)
    assert await harness.executor.launch(request) == first
    assert await harness.instance(ref) == instance
    await harness.executor.stop(ref, grace_seconds=0)
    await harness.end(ref)


async def test_slots_are_given_and_taken_back(harness: Harness) -> None:
    small = pb.Resources()
    refs = [await harness.start("sleep") for _ in range(2)]
    reason = harness.executor.admit(small)
    assert reason is not None
    assert "slot" in reason
    assert harness.executor.admit(pb.Resources(gpus=1)) is None
    await harness.executor.stop(refs[0], grace_seconds=0)
    await harness.end(refs[0])
    assert harness.executor.admit(small) is None
    await harness.executor.stop(refs[1], grace_seconds=0)
    await harness.end(refs[1])


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
    assert not gone(pid_of(instance))
    await harness.restart()
    await harness.executor.adopt([ref])
    assert (await harness.executor.status(ref)).state is LaunchState.PLACED
    assert await harness.executor.holds(ref, instance)
    # It has its slot again.
    other = await harness.start("sleep")
    assert harness.executor.admit(pb.Resources()) is not None
    for launch in (ref, other):
        await harness.executor.stop(launch, grace_seconds=1)
        assert (await harness.end(launch)).end is LaunchEnd.STOPPED


async def test_worker_that_ended_meanwhile_is_reported(harness: Harness) -> None:
    ref = await harness.start("sleep")
    pid = pid_of(await harness.instance(ref))
    await harness.crash_server()
    psutil.Process(pid).kill()
    await until(lambda: gone(pid))
    await harness.restart()
    await harness.executor.adopt([ref])
    assert (await harness.end(ref)).end is LaunchEnd.CRASHED


async def test_worker_of_no_live_job_is_stopped(harness: Harness) -> None:
    ref = await harness.start("deaf")
    pid = pid_of(await harness.instance(ref))
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


async def test_nothing_of_a_launch_stays_but_its_log(harness: LocalHarness) -> None:
    ref = await harness.start("child")
    await harness.end(ref)
    child = int((harness.folder(ref) / "child").read_text())
    await until(lambda: gone(child))
    left = {file.name for file in harness.folder(ref).iterdir()}
    assert left == {"worker.log", "end.json", "instance", "child"}


async def test_log_is_bounded(harness: LocalHarness) -> None:
    ref = await harness.start("print 300")
    log = harness.folder(ref) / "worker.log"
    await until(lambda: log.with_name("worker.log.1").exists())
    await until(lambda: log.stat().st_size <= 64 << 10)
    await harness.executor.stop(ref, grace_seconds=0)
    await harness.end(ref)


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
