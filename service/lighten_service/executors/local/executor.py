"""Workers as processes of this machine."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from lighten import v1 as pb
from lighten_service.executors.local.cgroups import MemoryGroup, find_parent
from lighten_service.executors.local.folder import LaunchFile, LaunchFolder, living, prune
from lighten_service.executors.local.process import WorkerProcess, resident_bytes
from lighten_service.executors.local.slots import Slot, Slots
from lighten_service.executors.local.supervisor import Supervisor, explain
from lighten_service.executors.local.warm import WarmStart
from lighten_service.jobs.errors import Unavailable
from lighten_service.jobs.ports import (
    LaunchListener,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from lighten_service.jobs.ticket import Ticket

_log = logging.getLogger(__name__)

# What a worker sees of the server's environment: no credentials, no settings.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")

_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How this machine runs workers.

    Attributes:
        data_dir: folder of the server; workers live in ``workers`` below it.
        server: gRPC target of WorkerService for workers, for example ``127.0.0.1:8470``.
        cpu_slots: launches without a GPU at the same time; None: one for every 2 cores.
        gpus: GPUs for jobs; None: all that ``nvidia-smi`` reports.
        warm_workers: processes that have imported the libraries before a job arrives.
        command: starts a worker process.
        warm_imports: modules that a worker imports before it knows its job.
        use_cgroups: limit memory by control group where that is possible.
        memory_interval, disk_interval: seconds between two looks.
        max_log_bytes: size of a launch's log; one before it is kept.
        kept_folders: ended launches whose logs are kept.
    """

    data_dir: Path
    server: str
    cpu_slots: int | None = None
    gpus: int | None = None
    warm_workers: int = 1
    command: Sequence[str] = (sys.executable, "-P", "-m", "lighten_service.worker.main")
    warm_imports: Sequence[str] = ()
    use_cgroups: bool = True
    memory_interval: float = 0.5
    disk_interval: float = 5.0
    max_log_bytes: int = 10 << 20
    kept_folders: int = 100


class LocalExecutor:
    """The ``Executor`` port over processes. Everything happens in one event loop."""

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._workers = options.data_dir / "workers"
        imports = [part for name in options.warm_imports for part in ("--import", name)]
        self._warm = WarmStart((*options.command, *imports), self._workers, options.warm_workers)
        self._groups: Path | None = None
        self._slots = Slots(cpu_slots=0, gpus=0, memory_bytes=0)
        self._cores_per_slot = 1
        self._running: dict[_Key, Supervisor] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: LaunchListener | None = None

    async def open(self, listener: LaunchListener) -> None:
        """Look at the machine, and start the first idle worker."""
        self._listener = listener
        self._workers.mkdir(parents=True, exist_ok=True)
        for log in self._workers.glob("idle-*.log"):
            log.unlink()
        cores = len(os.sched_getaffinity(0))
        asked = self._options.cpu_slots
        cpu_slots = max(cores // 2, 1) if asked is None else asked
        gpus = self._options.gpus
        self._slots = Slots(
            cpu_slots=cpu_slots,
            gpus=await asyncio.to_thread(_count_gpus) if gpus is None else gpus,
            memory_bytes=psutil.virtual_memory().total,
        )
        self._cores_per_slot = max(cores // max(cpu_slots, 1), 1)
        self._groups = find_parent() if self._options.use_cgroups else None
        self._spawn_task(self._refill(self._environment(Slot())))
        self._spawn_task(self._look_at_memory())
        self._spawn_task(self._look_at_disk())

    async def adopt(self, launches: Sequence[LaunchRef]) -> None:
        """Take over what runs; report what ended; kill what no live job knows."""
        wanted = {(ref.job_id, ref.launch): ref for ref in launches}
        for ref, folder in living(self._workers):
            known = wanted.pop((ref.job_id, ref.launch), None)
            supervisor = self._find(ref, folder)
            if supervisor is None:
                await _bury(LaunchFile.from_json(ref.handle), folder)
                if known is not None:
                    await self._report(ref, await self.status(ref))
                continue
            self._slots.hold(supervisor.launch.slot)
            self._supervise(supervisor)
            if known is None:
                _log.warning("launch %d of %s has no live job: stopping it", ref.launch, ref.job_id)
                supervisor.stop(0.0)
        for ref in wanted.values():
            # Without a handle the launch may never have happened: it is asked for again.
            if ref.handle:
                await self._report(ref, await self.status(ref))

    def admit(self, resources: pb.Resources) -> str | None:
        return self._slots.obstacle(resources)

    @property
    def gpu_profiles(self) -> Sequence[pb.GpuProfile]:
        """None: the GPUs of one machine are alike."""
        return ()

    @property
    def launches_at_once(self) -> int:
        """One: the next is admitted once this one has its slot."""
        return 1

    async def launch(self, request: LaunchRequest) -> str:
        """Start a worker process, or find the one that was started, and return its handle.

        Raises:
            Unavailable: WORKER_START_FAILED, the operating system refuses.
        """
        folder = LaunchFolder(self._workers, request.job_id, request.launch)
        known = folder.read_launch()
        if known is not None or folder.read_end() is not None:
            return known.to_json() if known is not None else "ended"
        slot = self._slots.take(request.resources)
        try:
            supervisor, process = await self._start(request, folder, slot)
        except OSError as error:
            self._slots.release(slot)
            folder.remove()
            raise Unavailable(
                "WORKER_START_FAILED", f"no worker process can be started: {error}"
            ) from error
        self._supervise(supervisor)
        # Everything is durable: only now may the worker attach.
        ticket = Ticket(
            server=self._options.server,
            job=request.name,
            launch=request.launch,
            token=request.token,
            scratch=str(folder.scratch),
            environment={"TMPDIR": str(folder.scratch)},
        )
        with suppress(BrokenPipeError):  # its end is reported as any other
            process.hand_over(ticket.to_line())
        self._spawn_task(self._refill(self._environment(slot)))
        return supervisor.launch.to_json()

    async def holds(self, ref: LaunchRef, instance_id: str) -> bool:
        supervisor = self._running.get((ref.job_id, ref.launch))
        return supervisor is not None and (supervisor.launch.process.instance_id == instance_id)

    async def status(self, ref: LaunchRef) -> LaunchStatus:
        supervisor = self._running.get((ref.job_id, ref.launch))
        if supervisor is not None:
            instance = supervisor.launch.process.instance_id
            return LaunchStatus(LaunchState.PLACED, instance_id=instance)
        end = LaunchFolder(self._workers, ref.job_id, ref.launch).read_end()
        return end or LaunchStatus(LaunchState.UNKNOWN, detail="no such worker process")

    async def stop(self, ref: LaunchRef, *, grace_seconds: float) -> None:
        supervisor = self._running.get((ref.job_id, ref.launch))
        if supervisor is not None:
            supervisor.stop(grace_seconds)

    async def close(self) -> None:
        """Stop watching, and let idle workers end. Running workers carry on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for supervisor in self._running.values():
            supervisor.abandon()
        self._running.clear()
        self._warm.close()

    async def _start(
        self, request: LaunchRequest, folder: LaunchFolder, slot: Slot
    ) -> tuple[Supervisor, WorkerProcess]:
        folder.make()
        process = await self._warm.take(self._environment(slot), folder.log)
        memory_bytes = request.resources.memory_bytes
        group = self._limit_memory(folder.path.name, process, memory_bytes)
        launch = LaunchFile(
            process=process.identity,
            slot=slot,
            scratch=str(folder.scratch),
            log=str(folder.log),
            memory_bytes=memory_bytes,
            scratch_bytes=request.resources.scratch_bytes,
            memory_group=str(group.folder) if group is not None else "",
        )
        try:
            await asyncio.to_thread(folder.write_launch, launch)
        except OSError:
            process.kill()
            process.release()
            raise
        ref = LaunchRef(request.job_id, request.launch, launch.to_json())
        return Supervisor(ref, launch, folder, process, group), process

    def _limit_memory(
        self, name: str, process: WorkerProcess, memory_bytes: int
    ) -> MemoryGroup | None:
        if self._groups is None or not memory_bytes:
            return None
        try:
            group = MemoryGroup.make(self._groups / f"lighten-{name}", memory_bytes)
            group.add(process.identity.pid)
        except OSError as error:
            # The watchdog on resident memory remains.
            _log.warning("no memory group for %s: %s", name, error)
            return None
        return group

    def _find(self, ref: LaunchRef, folder: LaunchFolder) -> Supervisor | None:
        """Return a launch of an earlier server process if its worker lives."""
        launch = LaunchFile.from_json(ref.handle)
        try:
            process = WorkerProcess(launch.process)
        except ProcessLookupError:
            return None
        return Supervisor(ref, launch, folder, process, _group_of(launch))

    def _supervise(self, supervisor: Supervisor) -> None:
        self._running[supervisor.ref.job_id, supervisor.ref.launch] = supervisor
        self._spawn_task(self._follow(supervisor))

    async def _follow(self, supervisor: Supervisor) -> None:
        ref = supervisor.ref
        try:
            status = await supervisor.until_ended()
        finally:
            self._running.pop((ref.job_id, ref.launch), None)
        self._slots.release(supervisor.launch.slot)
        await self._report(ref, status)
        await asyncio.to_thread(prune, self._workers, self._options.kept_folders)

    async def _report(self, ref: LaunchRef, status: LaunchStatus) -> None:
        if self._listener is not None:
            await self._listener(ref, status)

    async def _refill(self, environment: dict[str, str]) -> None:
        try:
            await self._warm.refill(environment)
        except OSError as error:
            _log.warning("no idle worker can be started: %s", error)

    async def _look_at_memory(self) -> None:
        while True:
            await asyncio.sleep(self._options.memory_interval)
            if self._running:
                resident = await asyncio.to_thread(resident_bytes)
                for supervisor in list(self._running.values()):
                    supervisor.check_memory(resident)

    async def _look_at_disk(self) -> None:
        while True:
            await asyncio.sleep(self._options.disk_interval)
            for supervisor in list(self._running.values()):
                try:
                    await supervisor.check_disk(self._options.max_log_bytes)
                except OSError as error:
                    _log.warning("cannot look at %s: %s", supervisor.launch.scratch, error)

    def _environment(self, slot: Slot) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return {
            **kept,
            "OMP_NUM_THREADS": str(self._cores_per_slot),
            # Threads that spin at a barrier starve each other once the machine is shared.
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in slot.gpus),
            "PYTHONUNBUFFERED": "1",
        }

    def _spawn_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the executor failed", exc_info=error)


def _group_of(launch: LaunchFile) -> MemoryGroup | None:
    return MemoryGroup(Path(launch.memory_group)) if launch.memory_group else None


async def _bury(launch: LaunchFile, folder: LaunchFolder) -> None:
    """Keep why a worker ended that nobody looked after, and delete the rest."""
    group = _group_of(launch)
    if folder.read_end() is None:
        folder.write_end(explain(launch, group, None))
    if group is not None:
        await group.remove()
    folder.close()


def _count_gpus() -> int:
    """Return the number of GPUs that the driver reports; 0 without a driver."""
    try:
        listed = subprocess.run(
            ("nvidia-smi", "-L"),  # noqa: S607  wherever the driver put it
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
