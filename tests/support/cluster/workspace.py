"""A temporary folder and the processes that work in it."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.cluster.guard import VARIABLE

# Below the range of outgoing connections, and below the ports of SeaweedFS.
_FIRST_PORT, _LAST_PORT = 5_000, 11_000
_CLOSE_SECONDS = 60.0


class Daemon:
    """A program that can be killed and started again with the same arguments."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]):
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        self._command = command
        self._environment = {**os.environ, VARIABLE: str(folder), **env}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which clean up
            )

    def kill(self) -> None:
        """Kill -9 and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


class Workspace:
    """A folder with daemons in it; all of it goes at the end, whatever happens before.

    A guard process cleans up, also when this process is killed with -9.
    """

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"lighten-{name}-"))
        self._guard = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("guard.py")), str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def daemon(
        self, name: str, *command: str | Path, env: Mapping[str, str] | None = None
    ) -> Daemon:
        """Start a program. Its output goes to ``logs/<name>.log``."""
        daemon = Daemon(name, [str(part) for part in command], self.folder, env or {})
        daemon.start()
        return daemon

    def keep_logs(self, target: Path) -> None:
        """Copy the logs of all daemons."""
        shutil.copytree(self.folder / "logs", target, dirs_exist_ok=True)

    def close(self) -> None:
        """Remove everything. Raises RuntimeError with what would not go."""
        _, errors = self._guard.communicate(timeout=_CLOSE_SECONDS)
        if self._guard.returncode:
            raise RuntimeError(errors.decode(errors="replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def wait_for(ready: Callable[[], bool], daemon: Daemon, seconds: float = 60.0) -> None:
    """Wait until something holds. Raises RuntimeError with the end of the daemon's log."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not daemon.alive or time.monotonic() > deadline:
            state = "is not ready" if daemon.alive else "ended"
            raise RuntimeError(f"{daemon.name} {state}:\n{daemon.tail()}")
        time.sleep(0.1)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that is free now, outside of the range of outgoing connections."""
    while True:
        port = random.randrange(_FIRST_PORT, _LAST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
