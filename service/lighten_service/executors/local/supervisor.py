"""Looks after one launch: its limits while it runs, its end, and why it ended."""

import asyncio
import logging
import signal
from collections.abc import Mapping

from lighten_service.executors.local.cgroups import MemoryGroup
from lighten_service.executors.local.folder import LaunchFile, LaunchFolder
from lighten_service.executors.local.process import WorkerProcess
from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchState, LaunchStatus
from lighten_service.jobs.ticket import EXIT_STOPPED

_log = logging.getLogger(__name__)


class Supervisor:
    """One running launch."""

    def __init__(
        self,
        ref: LaunchRef,
        launch: LaunchFile,
        folder: LaunchFolder,
        process: WorkerProcess,
        group: MemoryGroup | None,
    ) -> None:
        self.ref = ref
        self.launch = launch
        self._folder = folder
        self._process = process
        self._group = group
        # Why it ends, once that is decided; the first reason stays.
        self._why = folder.read_end()
        self._kill_at: float | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def until_ended(self) -> LaunchStatus:
        """Wait for the end, clean up, and return why it ended."""
        await self._process.wait()
        # What the worker left behind in its group.
        self._process.kill()
        if self._stopping is not None:
            self._stopping.cancel()
        self._decide(explain(self.launch, self._group, self._process.exit_code))
        if self._group is not None:
            await self._group.remove()
        # At the very end: until then the next server process finds the launch.
        await asyncio.to_thread(self._folder.close)
        self._process.release()
        return self._why or LaunchStatus(LaunchState.UNKNOWN)

    def check_memory(self, resident: Mapping[int, int]) -> None:
        """Kill the launch when its process group holds more than it may."""
        used, limit = resident.get(self.launch.process.pid, 0), self.launch.memory_bytes
        if 0 < limit < used:
            self._kill(_out_of_memory(limit, used))

    async def check_disk(self, max_log_bytes: int) -> None:
        """Bound the log; kill the launch when its scratch folder holds more than it may."""
        await asyncio.to_thread(self._folder.bound_log, max_log_bytes)
        limit = self.launch.scratch_bytes
        used = await asyncio.to_thread(self._folder.scratch_used) if limit else 0
        if used > limit:
            figures = {"limit_bytes": str(limit), "used_bytes": str(used)}
            detail = f"the worker used {used} bytes of disk and may use {limit}"
            self._kill(_ended(LaunchEnd.OUT_OF_DISK, detail, figures))

    def stop(self, grace_seconds: float) -> None:
        """Ask the worker to end; kill it after the grace period. The shortest grace counts."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + grace_seconds
        if self._kill_at is not None and self._kill_at <= kill_at:
            return
        first = self._kill_at is None
        self._kill_at = kill_at
        if self._stopping is not None:
            self._stopping.cancel()
        if first:
            self._decide(_ended(LaunchEnd.STOPPED, "the worker was stopped"))
            self._process.terminate()
        self._stopping = asyncio.create_task(self._kill_later(grace_seconds))

    def abandon(self) -> None:
        """Look away; the worker carries on."""
        if self._stopping is not None:
            self._stopping.cancel()
        self._process.release()

    async def _kill_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._process.kill()

    def _kill(self, why: LaunchStatus) -> None:
        self._decide(why)
        self._process.kill()

    def _decide(self, why: LaunchStatus) -> None:
        """Keep the reason before it shows: the next server process may be the one that asks."""
        if self._why is not None:
            return
        self._why = why
        try:
            self._folder.write_end(why)
        except OSError as error:
            _log.warning("cannot keep why %s ended: %s", self.ref.job_id, error)


def explain(launch: LaunchFile, group: MemoryGroup | None, code: int | None) -> LaunchStatus:
    """Return why a worker ended; ``code``: its exit code, None where that is not known."""
    if group is not None and group.oom_kills:
        return _out_of_memory(launch.memory_bytes, max(group.peak_bytes, launch.memory_bytes))
    return _explain_exit(code)


def _explain_exit(code: int | None) -> LaunchStatus:
    if code is None:
        return _ended(LaunchEnd.CRASHED, "the worker ended while the server was away")
    figures = {"exit_code": str(code)}
    if code in (EXIT_STOPPED, -signal.SIGTERM):
        return _ended(LaunchEnd.DISRUPTED, "the worker was asked to end", figures)
    if code < 0:
        name = signal.Signals(-code).name
        return _ended(LaunchEnd.CRASHED, f"the worker was ended by {name}", {"signal": name})
    return _ended(LaunchEnd.EXITED, f"the worker ended with exit code {code}", figures)


def _out_of_memory(limit: int, used: int) -> LaunchStatus:
    return _ended(
        LaunchEnd.OUT_OF_MEMORY,
        f"the worker used {used} bytes of memory and may use {limit}",
        {"limit_bytes": str(limit), "used_bytes": str(used)},
    )


def _ended(end: LaunchEnd, detail: str, figures: Mapping[str, str] | None = None) -> LaunchStatus:
    return LaunchStatus(LaunchState.ENDED, end, detail, tuple(sorted((figures or {}).items())))
