"""Memory limits by control group, version 1 or 2, where this process may make groups."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

_PROBE = "lighten-probe"
_REMOVE_TRIES = 100
_REMOVE_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class _Files:
    limit: str
    swap: str
    peak: str
    # File with a line `oom_kill N`.
    events: str


_VERSION_1 = _Files(
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
)
_VERSION_2 = _Files("memory.max", "memory.swap.max", "memory.peak", "memory.events")


class MemoryGroup:
    """One group with a limit; the kernel kills in it what goes beyond."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        old = (folder / _VERSION_1.limit).exists()
        self._files = _VERSION_1 if old else _VERSION_2

    @classmethod
    def make(cls, folder: Path, limit_bytes: int) -> "MemoryGroup":
        """Make a group, or find it. Raises OSError."""
        folder.mkdir(exist_ok=True)
        group = cls(folder)
        files = group._files
        (folder / files.limit).write_text(str(limit_bytes))
        with suppress(OSError):
            # Version 1 limits memory and swap together; the file is absent without swap accounting.
            swap = str(limit_bytes) if files is _VERSION_1 else "0"
            (folder / files.swap).write_text(swap)
        return group

    def add(self, pid: int) -> None:
        """Move a process in; its children follow. Memory that it has stays counted elsewhere."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel killed for memory."""
        with suppress(OSError):
            for line in (self.folder / self._files.events).read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return 0

    @property
    def peak_bytes(self) -> int:
        """Most memory that was in use; 0 where the kernel does not say."""
        with suppress(OSError, ValueError):
            return int((self.folder / self._files.peak).read_text())
        return 0

    async def remove(self) -> None:
        """Delete the group. A process that was killed leaves it a moment after its end."""
        for _ in range(_REMOVE_TRIES):
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                await asyncio.sleep(_REMOVE_PAUSE)
            else:
                return
        _log.warning("cannot remove %s: it is in use", self.folder)


def find_parent() -> Path | None:
    """Return the folder below which groups can be made, None where they cannot."""
    for parent, files in _candidates():
        probe = parent / _PROBE
        try:
            probe.mkdir(exist_ok=True)
            usable = (probe / files.limit).exists()
            probe.rmdir()
        except OSError:
            continue
        if usable:
            return parent
    return None


def _candidates() -> list[tuple[Path, _Files]]:
    mounts = Path("/sys/fs/cgroup")
    candidates = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                candidates.append((mounts / "memory" / path.lstrip("/"), _VERSION_1))
            elif number == "0" and not controllers:
                candidates.append((mounts / path.lstrip("/"), _VERSION_2))
    return candidates
