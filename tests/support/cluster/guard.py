"""``python guard.py FOLDER``: waits until its standard input ends, then removes a workspace.

Its parent holds the other end, so this also happens when the parent is killed with -9. Nothing
that worked in the folder is left: processes, containers, cgroups, the folder itself. A node's
mounts lie in a namespace of its own and go with its last process.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Every process of a workspace has its folder here; what they start inherits it.
VARIABLE = "LIGHTEN_TEST_WORKSPACE"
_SECONDS = 20.0


def sweep(folder: Path) -> None:
    """Kill and delete. Raises RuntimeError when something will not go."""
    deadline = time.monotonic() + _SECONDS
    while True:
        left = [*_kill(folder), *_remove_cgroups(folder.name)]
        if not left:
            break
        if time.monotonic() > deadline:
            raise RuntimeError(f"left over of {folder}: {', '.join(left)}")
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def left_over(folder: Path) -> list[str]:
    """Return what there still is of a workspace: processes, cgroups, its folder."""
    found = [*_processes(folder), *_contained(folder.name)]
    processes = [f"process {process.pid} {process.name()}" for process in found]
    groups = [f"cgroup {path}" for path in _cgroups(folder.name)]
    return [*processes, *groups, *([str(folder)] if folder.exists() else [])]


def _kill(folder: Path) -> list[str]:
    """Kill all processes, in containers too; return those that were there."""
    found = []
    for process in [*_processes(folder), *_contained(folder.name)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(f"process {process.pid} {process.name()}")
            process.kill()
    return found


def _processes(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(VARIABLE) == str(folder):
                yield process


def _contained(group: str) -> Iterator[psutil.Process]:
    """Yield what runs in containers: it has an environment of its own, but our cgroup."""
    for path in _cgroups(group):
        with contextlib.suppress(OSError):
            for line in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield psutil.Process(int(line))


def _remove_cgroups(group: str) -> list[str]:
    for path in _cgroups(group):
        with contextlib.suppress(OSError):
            path.rmdir()
    return [f"cgroup {path}" for path in _cgroups(group)]


def _cgroups(group: str) -> list[Path]:
    """Return the cgroups of a workspace, children before parents, of cgroup v1 and v2."""
    root = Path("/sys/fs/cgroup")
    tops = [path for path in (root / group, *root.glob(f"*/{group}")) if path.is_dir()]
    return [Path(folder) for top in tops for folder, _, _ in os.walk(top, topdown=False)]


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
