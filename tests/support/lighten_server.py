"""A real ``lighten-server`` process on loopback, for tests, benchmarks and the demo."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.seaweedfs import SeaweedFS

_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0


def s3_settings(storage: SeaweedFS, root: str) -> dict[str, str]:
    """Return the settings of a server that writes below ``root`` (``s3://bucket/prefix``).

    Every project may read the whole bucket.
    """
    bucket = root.removeprefix("s3://").split("/")[0]
    return {
        "LIGHTEN_PROJECT_ACCESS": json.dumps({"*": [f"s3://{bucket}/"]}),
        "LIGHTEN_STORAGE_ROOT": root,
        "LIGHTEN_S3__ENDPOINT": storage.endpoint,
        "LIGHTEN_S3__ACCESS_KEY": storage.access_key,
        "LIGHTEN_S3__SECRET_KEY": storage.secret_key,
    }


class LightenServer:
    """One server; started again it keeps its data folder and its ports.

    Args:
        data_dir: database, objects and logs.
        settings: environment variables ``LIGHTEN_…`` over those of this process.
        log: file that takes its output; below ``data_dir`` by default.
        module: what to run.
    """

    def __init__(
        self,
        data_dir: Path,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        module: str = "lighten_service.server",
    ) -> None:
        self.data_dir = data_dir
        self.log = log or data_dir / "server.log"
        self._settings = dict(settings or {})
        self._module = module
        self._ports = {"LIGHTEN_PORT": "0", "LIGHTEN_HTTP_PORT": "0", "LIGHTEN_METRICS_PORT": "0"}
        self._process: subprocess.Popen[bytes] | None = None
        self.target = ""
        self.metrics = ""

    @property
    def pid(self) -> int:
        assert self._process, "start the server first"
        return self._process.pid

    def start(self) -> Self:
        """Start and wait until it is ready. Raises RuntimeError with the end of its log."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        ready = self.data_dir / "ready.json"
        ready.unlink(missing_ok=True)
        own = {"LIGHTEN_DATA_DIR": str(self.data_dir), **self._ports, **self._settings}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, "--ready-file", str(ready)],
                env={**os.environ, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the program that started it
            )
        try:
            addresses = self._wait(ready)
        except BaseException:
            self.kill()
            raise
        self.target, self.metrics = addresses["grpc"], addresses["metrics"]
        for variable, name in zip(self._ports, ("grpc", "http", "metrics"), strict=True):
            self._ports[variable] = addresses[name].rstrip("/").rsplit(":", 1)[1]
        return self

    def stop(self) -> None:
        """Stop as an operator would: SIGTERM, and SIGKILL when it does not listen."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill -9, as a power cut would. Workers carry on."""
        assert self._process, "start the server first"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        """Start; at the end of the block the workers go too, which otherwise carry on."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        workers = psutil.Process(self.pid).children(recursive=True) if self._process else []
        self.stop()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(workers, timeout=_STOP_SECONDS)

    def _wait(self, ready: Path) -> dict[str, str]:
        assert self._process
        deadline = time.monotonic() + _READY_SECONDS
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"lighten-server did not start; see {self.log}:\n{text}")
            time.sleep(0.02)
        addresses: dict[str, str] = json.loads(ready.read_text())
        return addresses
