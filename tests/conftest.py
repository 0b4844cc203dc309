"""Fixtures that tests of several rooms share."""

import logging
import signal
from collections.abc import Iterator

import pytest
import structlog

from tests.support.seaweedfs import SeaweedFS

pytest_plugins = ["tests.support.cluster.fixtures", "tests.support.emulation.fixtures"]


def pytest_configure() -> None:
    """Let commands that tests start hear Ctrl-C: a shell makes what it runs in the background deaf
    to it, children included.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def restore_logging() -> Iterator[None]:
    """For tests that configure the logs of this process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server for the whole run: make your own bucket, never stop it."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
