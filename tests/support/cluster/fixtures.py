"""Fixtures: one cluster for the run, or the one that the developer names."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.cluster.access import make_namespace
from tests.support.cluster.build import is_built
from tests.support.cluster.clusters import VARIABLE, Cluster, foreign_kubeconfig
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.node import Node, missing

# The first is the node of the fixture; a test may start the others.
NODES = ("node-1", "node-2")
_LOGS = Path(__file__).parents[3] / "out" / "cluster-logs"
_numbers = count(1)


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster; without a node its pods wait for ever."""
    if not is_built("kubectl"):
        pytest.skip("the cluster's programs are not built: run `make test-kubernetes` (needs Go)")
    folder = tmp_path_factory.mktemp("cluster")
    foreign = foreign_kubeconfig()
    if foreign is not None:
        yield Cluster(foreign, folder)
        return
    with ControlPlane(NODES) as control_plane:
        yield Cluster(control_plane.kubeconfig, folder, control_plane)
        if request.session.testsfailed:
            control_plane.workspace.keep_logs(_LOGS)


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Node]:
    """A real node of the cluster; a test that kills its kubelet starts it again."""
    if cluster.control_plane is None:
        pytest.skip(f"the cluster of {VARIABLE} cannot mount this machine's worker into its pods")
    if reason := missing():
        pytest.skip(reason)
    with Node(cluster.control_plane, NODES[0]) as node:
        yield node
        if request.session.testsfailed:
            node.workspace.keep_logs(_LOGS)


@pytest.fixture
def control_plane(cluster: Cluster) -> ControlPlane:
    """The processes of the cluster, for tests that kill them."""
    if cluster.control_plane is None:
        pytest.skip(f"the cluster of {VARIABLE} is not ours to kill")
    return cluster.control_plane


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    """An administrator in a namespace of the test's own, removed afterwards."""
    namespace = f"test-{int(time.time()):x}-{next(_numbers)}"
    make_namespace(cluster.kubectl, namespace)
    yield cluster.kubectl.within(namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
