"""Fixtures that tests of several rooms share."""

from collections.abc import Iterator

import pytest

from tests.support.seaweedfs import SeaweedFS

pytest_plugins = ["tests.support.cluster.fixtures"]


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server for the whole run: make your own bucket, never stop it."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
