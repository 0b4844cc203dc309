"""Runs the control plane as a process: settings, start, signals, a stop in order."""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from lighten_service.assembly import Addresses, open_control_plane
from lighten_service.executor_setup import make_executor
from lighten_service.jobs.errors import LightenError
from lighten_service.settings import Settings, SettingsError, load
from lighten_service.telemetry import logs

_CANNOT_START = 2
_PRIVATE = {
    "bind": "127.0.0.1",
    "metrics_bind": "",
    "worker_port": None,
    "tls": None,
    "auth": None,
    "executor": {"kind": "local"},
}

log = logs.get_logger(__name__)


def run(options: argparse.Namespace) -> None:
    """Serve as the arguments of ``lighten-server`` say; exit with 2 when it cannot start."""
    try:
        settings = load(options.config, _overrides(options))
        logs.configure(level=settings.log_level, form=settings.log_format)
        asyncio.run(_serve(settings, options))
    except (SettingsError, LightenError, OSError) as error:
        sys.stderr.write(f"lighten-server cannot start: {error}\n")
        sys.exit(_CANNOT_START)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    names = ("port", "http_port", "metrics_port", "data_dir")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {**_PRIVATE, **given} if options.private else given


async def _serve(settings: Settings, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_control_plane(settings, make_executor) as plane:
        _announce(plane.addresses, options)
        # What is loaded now stays: the collector need not look at it while calls wait.
        gc.freeze()
        gc.enable()
        await plane.run_until(stop)
        log.info("stopping")
        await plane.drain()


def _announce(addresses: Addresses, options: argparse.Namespace) -> None:
    line = (
        f"lighten-server is ready: gRPC {addresses.grpc}, objects {addresses.http}, "
        f"metrics {addresses.metrics}\n"
    )
    sys.stdout.write(line)
    sys.stdout.flush()
    described = json.dumps(asdict(addresses)) + "\n"
    if options.ready_file is not None:
        # By rename, so that a reader never sees half of it.
        draft = options.ready_file.with_name(options.ready_file.name + ".part")
        draft.write_text(described)
        draft.replace(options.ready_file)
    if options.ready_fd is not None:
        with os.fdopen(options.ready_fd, "w") as ready:
            ready.write(described)
