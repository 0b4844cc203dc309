"""``lighten-server`` as a process: start, readiness, refusals, SIGTERM and SIGKILL."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from tests.support.lighten_server import LightenServer

NO_WORKERS = {"LIGHTEN_EXECUTOR__WARM_WORKERS": "0"}


SERVER = [
    *(sys.executable, "-m", "lighten_service.server"),
    *("--port=0", "--http-port=0", "--metrics-port=0"),
]


def test_signed_urls_outlive_a_kill_and_sigterm_ends_in_order(tmp_path: Path):
    server = LightenServer(tmp_path / "data", NO_WORKERS).start()
    with grpc.insecure_channel(server.target) as channel:
        api = OptimizationServiceStub(channel)
        request = pb.CreateUploadUrlRequest(parent="projects/default", filename="model.onnx")
        upload = api.CreateUploadUrl(request)
    server.kill()
    server.start()
    try:
        assert "lighten-server is ready: gRPC " + server.target in server.log.read_text()
        with grpc.insecure_channel(server.target) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        put = urllib.request.Request(upload.url, data=b"model", method="PUT")
        urllib.request.urlopen(put, timeout=10).close()
        assert Path(upload.uri.removeprefix("file://")).read_bytes() == b"model"
        os.kill(server.pid, signal.SIGTERM)
        assert os.waitpid(server.pid, 0)[1] == 0
    finally:
        server.stop()


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVER, *arguments],
        env={**os.environ, **NO_WORKERS, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_descriptor_gets_the_addresses(tmp_path: Path):
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*SERVER, f"--data-dir={tmp_path}", f"--ready-fd={writing}"],
        env={**os.environ, **NO_WORKERS},
        pass_fds=[writing],
        stdout=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as ready:
        addresses = json.loads(ready.read())
    assert addresses["pid"] == process.pid
    assert addresses["http"].startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_a_bind_beyond_loopback_does_not_start():
    result = start(LIGHTEN_BIND="0.0.0.0")
    assert result.returncode == 2
    assert "neither TLS nor authentication yet" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("port", ["port", "http_port", "metrics_port"])
def test_a_port_in_use_is_named(tmp_path: Path, port: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        result = start(f"--data-dir={tmp_path}", f"--{port.replace('_', '-')}={number}")
    assert result.returncode == 2
    assert number in result.stderr
    assert "Traceback" not in result.stderr
