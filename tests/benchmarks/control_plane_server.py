"""The server of the control plane's benchmark: the real one, but its workers are played.

Prints its addresses as one line of JSON, then one line for each launch. Ends when its input closes.
"""

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from lighten_service.assembly import open_control_plane
from lighten_service.jobs.ports import LaunchRequest
from lighten_service.settings import load
from tests.support.scripted_workers import ScriptedExecutor


class PrintingExecutor(ScriptedExecutor):
    """Tells the benchmark how to play the worker of a launch."""

    async def launch(self, request: LaunchRequest) -> str:
        print(json.dumps([request.name, request.launch, request.token]), flush=True)
        return await super().launch(request)


async def serve(folder: Path, slots: int) -> None:
    logging.disable(logging.INFO)
    settings = load(
        overrides={
            "port": 0,
            "http_port": 0,
            "metrics_port": 0,
            "data_dir": folder / "data",
            "file_roots": [str(folder)],
            "limits": {"max_queued_jobs": 0},
        }
    )
    executor = PrintingExecutor(slots)
    async with open_control_plane(settings, lambda *_: executor) as plane:
        print(json.dumps(asdict(plane.addresses)), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
