"""Memory limits by control group, version 1 or 2, where this process may make groups."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

_PROBE = "lighten-probe"


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

    def __init__(self, folder: Path, files: _Files) -> None:
        self._folder = folder
        self._files = files

    def add(self, pid: int) -> None:
        """Move a process in; its children follow. Memory that it has stays counted elsewhere."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel killed for memory."""
        with suppress(OSError):
            for line in (self._folder / self._files.events).read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return 0

    @property
    def peak_bytes(self) -> int:
        """Most memory that was in use; 0 where the kernel does not say."""
        with suppress(OSError, ValueError):
            return int((self._folder / self._files.peak).read_text())
        return 0

    def remove(self) -> None:
        """Delete the group, once nobody is in it."""
        try:
            self._folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("cannot remove %s: %s", self._folder, error)


class MemoryGroups:
    """Makes groups below this process's own. Names are unique on the machine."""

    def __init__(self, parent: Path, files: _Files) -> None:
        self._parent = parent
        self._files = files

    def make(self, name: str, limit_bytes: int) -> MemoryGroup:
        """Make a group, or find it. Raises OSError."""
        group = self.find(name)
        folder = self._parent / name
        folder.mkdir(exist_ok=True)
        (folder / self._files.limit).write_text(str(limit_bytes))
        with suppress(OSError):
            # Memory and swap together; absent where the kernel does not account for swap.
            version_2 = self._files is _VERSION_2
            (folder / self._files.swap).write_text("0" if version_2 else str(limit_bytes))
        return group

    def find(self, name: str) -> MemoryGroup:
        """Return the group of this name, which an earlier process made."""
        return MemoryGroup(self._parent / name, self._files)


def find_groups() -> MemoryGroups | None:
    """Return where groups can be made, None where they cannot."""
    for parent, files in _candidates():
        probe = parent / _PROBE
        try:
            probe.mkdir(exist_ok=True)
            usable = (probe / files.limit).exists()
            probe.rmdir()
        except OSError:
            continue
        if usable:
            return MemoryGroups(parent, files)
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
