"""What this process may use of its machine.

In a container the machine shows all of its CPUs and memory; what is for the container stands in its
control groups alone.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import psutil


@cache
def cpus() -> int:
    """Return the CPUs that the process may use, at least 1; a share of one counts as one."""
    quota = ControlGroups().cpu_quota()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(min(allowed, math.ceil(quota)), 1)


@cache
def memory_bytes() -> int:
    """Return the memory that the process may use."""
    limit = ControlGroups().memory_limit()
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Limits of a process's control groups, version 1 or 2, and of the groups around them.

    Attributes:
        mount: where the groups are mounted.
        membership: the file that names the process's groups.
    """

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def cpu_quota(self) -> float | None:
        """Return CPUs, with fractions; None without a limit."""
        quotas = [quota for group in self._groups("cpu") if (quota := _quota(group)) is not None]
        return min(quotas, default=None)

    def memory_limit(self) -> int | None:
        """Return bytes; None without a limit. Version 1 has one in any case, beyond any memory."""
        limits = [
            int(word)
            for group in self._groups("memory")
            for name in ("memory.max", "memory.limit_in_bytes")
            for word in _words(group / name)
            if word.isdigit()
        ]
        return min(limits, default=None)

    def _groups(self, controller: str) -> Iterator[Path]:
        """Yield the group of the process and those around it, as far as they show.

        A container may see its own group as the root of the mount, under the path of the host.
        """
        with suppress(OSError):
            for line in self.membership.read_text().splitlines():
                number, controllers, path = line.split(":", 2)
                if controller in controllers.split(","):
                    root = self.mount / controller
                elif number == "0" and not controllers:
                    root = self.mount
                else:
                    continue
                group = PurePosixPath(path)
                for one in (group, *group.parents):
                    if ".." not in one.parts:
                        yield root / str(one).lstrip("/")


def _quota(group: Path) -> float | None:
    words = _words(group / "cpu.max") or [
        *_words(group / "cpu.cfs_quota_us"),
        *_words(group / "cpu.cfs_period_us"),
    ]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None  # "max", -1, or no group
    return int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    """Return the words of a small file, none where it is absent."""
    with suppress(OSError):
        return file.read_text().split()
    return []
