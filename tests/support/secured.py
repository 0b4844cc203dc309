"""A control plane in this process with TLS and tokens, on free ports."""

import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from lighten import v1 as pb
from lighten_service.assembly import ControlPlane, ExecutorFactory, open_control_plane
from lighten_service.settings import load
from tests.support.certificates import Authority
from tests.support.scripted_workers import ScriptedExecutor
from tests.support.specs import onnx_spec
from tests.support.tokens import token_file


class Secured:
    """The server, its authority and its files. ``target`` is for gRPC, without a scheme."""

    def __init__(self, folder: Path, plane: ControlPlane, executor: ScriptedExecutor) -> None:
        self.folder = folder
        self.plane = plane
        self.executor = executor
        self.target = plane.addresses.grpc.removeprefix("grpcs://").replace(
            "127.0.0.1", "localhost"
        )
        self.ca = folder / "tls" / "ca.pem"
        self.tokens = folder / "tokens.toml"

    def spec(self) -> pb.JobSpec:
        return onnx_spec((self.folder / "files").as_uri())

    def trust(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca.read_bytes())

    def metric(self, name: str, **labels: str) -> float | None:
        """Return a sample as Prometheus would scrape it."""
        with urllib.request.urlopen(f"{self.plane.addresses.metrics}/metrics") as answer:
            text = answer.read().decode()
        samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if (sample.name, sample.labels) == (name, labels)
        ]
        return samples[0].value if samples else None


@asynccontextmanager
async def secured(
    folder: Path,
    authority: Authority | None = None,
    *,
    slots: int = 0,
    make_executor: ExecutorFactory | None = None,
    **overrides: Any,
) -> AsyncIterator[Secured]:
    """Start a server whose certificate ``server`` is signed by an authority below ``folder/tls``.

    ``tls`` adds to the settings of its table. Workers are played by the test, with ``slots`` at a
    time, unless ``make_executor`` makes real ones.
    """
    authority = authority or Authority(folder / "tls")
    cert, key = authority.sign("server")
    files = folder / "files"
    files.mkdir()
    for name in ("model.onnx", "calibration.npz"):
        (files / name).write_bytes(b"some bytes")
    ports = ("port", "http_port", "metrics_port", "worker_port", "worker_http_port")
    values = {
        **dict.fromkeys(ports, 0),
        "data_dir": folder / "data",
        "file_roots": [str(files)],
        "drain_seconds": 1,
        "auth": {"tokens": token_file(folder / "tokens.toml")},
        **overrides,
        "tls": {"cert": cert, "key": key, **overrides.get("tls", {})},
    }
    executor = ScriptedExecutor(slots)
    make_executor = make_executor or (lambda *_: executor)
    async with open_control_plane(load(overrides=values), make_executor) as plane:
        yield Secured(folder, plane, executor)
