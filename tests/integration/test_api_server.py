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

import lighten
from lighten import v1 as pb
from lighten.embedded import EmbeddedServer
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
    assert "there is no [tls] and no [auth]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("port", ["port", "http_port", "metrics_port"])
def test_a_port_in_use_is_named(tmp_path: Path, port: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        result = start(f"--data-dir={tmp_path}", f"--{port.replace('_', '-')}={number}")
    assert result.returncode == 2
    assert number in result.stderr
    assert "Traceback" not in result.stderr


def test_an_embedded_server_leaves_out_what_is_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tmp_path / "server.toml"
    config.write_text(
        'bind = "0.0.0.0"\nworker_port = 1\n[tls]\ncert = "/none"\nkey = "/none"\n'
        '[auth]\ntokens = "/none"\n[executor]\nkind = "kubernetes"\nwarm_workers = 0\n'
    )
    monkeypatch.setenv("LIGHTEN_CONFIG", str(config))
    with EmbeddedServer(tmp_path / "data", []) as server, lighten.Client(server.target) as client:
        assert server.target.startswith("127.0.0.1:")
        assert client.capabilities().techniques


def test_files_of_tls_and_tokens_that_cannot_be_read_are_named(tmp_path: Path):
    missing = str(tmp_path / "none.pem")
    data = f"--data-dir={tmp_path}"
    result = start(data, LIGHTEN_TLS__CERT=missing, LIGHTEN_TLS__KEY=missing)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert f"tls.cert: cannot read {missing}" in result.stderr
    result = start(data, LIGHTEN_AUTH__TOKENS=missing)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert f"auth.tokens: cannot read {missing}" in result.stderr
