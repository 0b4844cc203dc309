"""Worker processes: starting them, naming them beyond doubt, and noticing their end.

A process is named by boot, pid and start time: a pid alone is given to another process later.
"""

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Fields of /proc/PID/stat after the command's name.
_STATE, _GROUP, _START_TIME, _RESIDENT_PAGES = 0, 2, 19, 21
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of one boot. ``start_time``: clock ticks since boot. It leads its group."""

    pid: int
    boot_id: str
    start_time: int

    @property
    def instance_id(self) -> str:
        """What the worker calls itself in its hello."""
        return f"{self.boot_id}:{self.pid}:{self.start_time}"


class WorkerProcess:
    """A running worker, a child of this process or adopted.

    Raises ProcessLookupError when it is made for a process that is gone.
    """

    def __init__(self, identity: ProcessId, child: subprocess.Popen[bytes] | None = None) -> None:
        self.identity = identity
        self._child = child
        gone = f"process {identity.pid} is gone"
        # Before the descriptor is asked for: the pid may be another's by now, even a thread's.
        if _identify(identity.pid) != identity:
            raise ProcessLookupError(gone)
        try:
            self._pidfd = os.pidfd_open(identity.pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            raise ProcessLookupError(gone) from error
        # And after it is held, so that it is this very process's.
        if _identify(identity.pid) != identity:
            os.close(self._pidfd)
            raise ProcessLookupError(gone)

    @classmethod
    def spawn(
        cls, command: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path
    ) -> "WorkerProcess":
        """Start a process that waits for one line on its standard input.

        It leads a session of its own; output goes to ``log``. Raises OSError.
        """
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603  the operator's command
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
            )
        identity = _identify(child.pid)
        if identity is None:
            raise ProcessLookupError(f"{command[0]} ended at once")
        return cls(identity, child)

    @property
    def exit_code(self) -> int | None:
        """Code of a child that has ended, negative for a signal; None when it cannot be known."""
        return self._child.poll() if self._child is not None else None

    @property
    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return _identify(self.identity.pid) == self.identity

    def hand_over(self, line: bytes) -> None:
        """Write the line that the process waits for. Raises BrokenPipeError when it is gone."""
        if self._child is None or self._child.stdin is None:
            raise BrokenPipeError("an adopted process takes no line")
        with self._child.stdin as pipe:
            pipe.write(line)

    async def wait(self) -> None:
        """Return once the process has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)

    def terminate(self) -> None:
        """Ask it to end. No error when it has."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all of its group. No error when it is gone."""
        # The group keeps its number, which is the pid, for as long as anyone is in it.
        if self.alive or self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.identity.pid, signal.SIGKILL)

    def release(self) -> None:
        """Give back what is held of it here; the process carries on."""
        os.close(self._pidfd)
        if self._child is not None and self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.close()


def resident_bytes() -> dict[int, int]:
    """Return the resident memory of every process group of the machine, by group."""
    groups: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        fields = _stat(entry.name) if entry.name.isdigit() else None
        if fields is not None:
            group = int(fields[_GROUP])
            groups[group] = groups.get(group, 0) + int(fields[_RESIDENT_PAGES]) * _PAGE_BYTES
    return groups


def _identify(pid: int) -> ProcessId | None:
    """Return who runs under a pid now; None when nobody does, or only a zombie."""
    fields = _stat(str(pid))
    if fields is None or fields[_STATE] in "ZX":
        return None
    return ProcessId(pid, _BOOT_ID.read_text().strip(), int(fields[_START_TIME]))


def _stat(pid: str) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything.
    return text.rpartition(")")[2].split()
