"""What a client that cannot reach its server makes of it: certain is only what is seen."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import grpc
import pytest

import lighten
from lighten import errors
from tests.support.certificates import Authority

RESET = struct.pack("ii", 1, 0)


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Take connections, one by one, until the end; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = Thread(target=take)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def close(connection: socket.socket) -> None:
    connection.recv(4096)


@pytest.mark.parametrize("answer", [reset, close])
@pytest.mark.parametrize("scheme", ["", "grpcs://"])
def test_a_connection_that_breaks_before_a_handshake_is_a_server_that_is_away(
    scheme: str, answer: Callable[[socket.socket], None]
) -> None:
    # As of a load balancer whose server starts again: another try may reach it.
    with (
        listening(answer) as port,
        lighten.Client(f"{scheme}127.0.0.1:{port}", timeout=3.0) as client,
        pytest.raises(errors.LightenError) as caught,
    ):
        client.capabilities()
    assert caught.value.reason in ("TRANSPORT_UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_credentials_of_one_s_own_are_not_judged(tmp_path: Path) -> None:
    ca = Authority(tmp_path).ca.read_bytes()
    with listening(close) as port:
        credentials = grpc.ssl_channel_credentials(ca)
        with (
            lighten.Client(f"127.0.0.1:{port}", credentials=credentials, timeout=3.0) as client,
            pytest.raises(errors.LightenError) as caught,
        ):
            client.capabilities()
    assert caught.value.reason in ("TRANSPORT_UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        seen.append(connection.recv(100))

    with listening(listen) as proxy, listening(close) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        with (
            lighten.Client(f"127.0.0.1:{port}", token="secret", timeout=3.0) as client,
            pytest.raises(errors.LightenError),
        ):
            client.capabilities()
    assert seen == []
