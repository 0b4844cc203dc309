"""``python -m tests.support.scripted_server DATA_DIR``: a real server with scripted workers.

It prints its addresses as one line of JSON. A second start takes the ports of the first, so that
workers find it again.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lighten_service.assembly import open_control_plane
from lighten_service.executors.local import LocalExecutor, LocalOptions
from lighten_service.jobs.ports import Executor
from lighten_service.settings import Settings, load

COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("scripted_worker.py")))


def executor_factory(**options: object) -> Callable[..., Executor]:
    """Return what makes a local executor of scripted workers."""

    def make(settings: Settings, server: str, _: object = None) -> Executor:
        given = {"warm_workers": 1, "memory_interval": 0.1, "disk_interval": 0.2, **options}
        return LocalExecutor(
            LocalOptions(data_dir=settings.data_dir, server=server, command=COMMAND, **given)  # type: ignore[arg-type]
        )

    return make


def settings_for(folder: Path, **overrides: object) -> Settings:
    """Return settings of a server below ``folder`` on free ports, the same ones after a restart."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "calibration.npz"):
        if not (files / name).exists():
            (files / name).write_bytes(b"some bytes")
    known = folder / "addresses.json"
    ports = {"port": 0, "http_port": 0}
    if known.exists():
        addresses = json.loads(known.read_text())
        ports = {
            "port": int(addresses["grpc"].rpartition(":")[2]),
            "http_port": int(addresses["http"].rpartition(":")[2]),
        }
    values = {
        **ports,
        "metrics_port": 0,
        "data_dir": folder / "data",
        "file_roots": [str(files)],
        "drain_seconds": 1,
        "cancel_grace_seconds": 0.5,
        "kill_grace_seconds": 0.5,
        "retry_pause_seconds": 0.1,
        **overrides,
    }
    return load(overrides=values)


async def serve(folder: Path) -> None:
    async with open_control_plane(settings_for(folder), executor_factory()) as plane:
        text = json.dumps(asdict(plane.addresses))
        (folder / "addresses.json").write_text(text)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
