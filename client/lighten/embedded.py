"""A Lighten server as a child process, for as long as one job takes. Needs the extra `server`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from lighten.errors import Internal, Unavailable

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOG_LINES = 10


class EmbeddedServer:
    """Runs ``lighten-server`` on free loopback ports over a folder; use it with ``with``.

    It has its own session, so that Ctrl-C reaches the caller alone, who can cancel the job first.

    Args:
        data_dir: folder of the database, the objects and ``server.log``.
        file_roots: folders that jobs may read as ``file://``.
    """

    def __init__(self, data_dir: Path, file_roots: Sequence[Path]) -> None:
        self._log_path = data_dir / "server.log"
        self._data_dir = data_dir
        self._file_roots = file_roots
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self.target = self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def logs(self) -> str:
        """Return the logs of the server and of its workers."""
        paths = sorted(self._data_dir.rglob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')}" for path in paths)

    def stop(self) -> None:
        """Stop the server, and whatever it started that outlives it."""
        process, self._process = self._process, None
        if process is None:
            return
        # A worker outlives its server on purpose; nobody would come back for this one.
        children = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also after an impatient second Ctrl-C.
            process.kill()
            process.wait()
            _kill(children)

    def _start(self) -> str:
        ready = self._data_dir / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "lighten_service.server", "--private"]
        command += ["--port", "0", "--http-port", "0", "--metrics-port", "0"]
        command += ["--data-dir", str(self._data_dir), "--ready-file", str(ready)]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._wait_for(ready, self._process)
        return str(json.loads(ready.read_text())["grpc"])

    def _wait_for(self, ready: Path, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if process.poll() is not None:
                tail = self._log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                message = "the embedded server did not start:\n" + "\n".join(tail)
                raise Internal(message, reason="SERVER_NOT_STARTED")
            if time.monotonic() > deadline:
                message = f"the embedded server was not ready within {_START_SECONDS:.0f} s"
                raise Unavailable(message, reason="SERVER_NOT_STARTED")
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        """Return the settings: the caller's own, but never the caller's database or storage."""
        return {
            **os.environ,
            "LIGHTEN_STORE_URL": "",
            "LIGHTEN_STORAGE_ROOT": "",
            "LIGHTEN_PUBLIC_URL": "",
            "LIGHTEN_WORKER_URL": "",
            "LIGHTEN_FILE_ROOTS": os.pathsep.join(str(root) for root in self._file_roots),
            "LIGHTEN_DRAIN_SECONDS": "1",
            "LIGHTEN_CANCEL_GRACE_SECONDS": "10",
            # There is one job: no worker need be warm for the next.
            "LIGHTEN_EXECUTOR__WARM_WORKERS": "0",
        }


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # Compares the start time as well: never another process with the same id.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
