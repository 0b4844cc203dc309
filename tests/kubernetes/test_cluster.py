"""The harness itself: a real cluster that comes up, survives what tests do to it, and goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cluster.clusters import Cluster
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.guard import left_over
from tests.support.cluster.kubectl import Json, Kubectl, KubectlError
from tests.support.cluster.kwok import FakeNodes
from tests.support.cluster.node import EMPTY_IMAGE, Node
from tests.support.cluster.pods import machine_template

pytestmark = pytest.mark.kubernetes

REPOSITORY = Path(__file__).parents[2]
READ_JOBS = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}}
# A process that makes a control plane, says where, and is killed.
OWNER = """
import time
from tests.support.cluster.control_plane import ControlPlane
plane = ControlPlane()
print(plane.folder, flush=True)
time.sleep(600)
"""


def test_objects_survive_a_restart(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    kubectl.apply(CONFIG_MAP)
    control_plane.kill_api_server()
    with pytest.raises(KubectlError, match="refused"):
        kubectl.get("configmap", "kept")
    control_plane.start_api_server()
    assert kubectl.get("configmap", "kept")
    control_plane.restart()
    assert kubectl.get("configmap", "kept")


def test_account_may_do_what_its_rules_say(cluster: Cluster, kubectl: Kubectl) -> None:
    account = Kubectl(cluster.account(kubectl.namespace, "reader", [READ_JOBS]))
    assert account.list("jobs") == []
    with pytest.raises(KubectlError, match="forbidden"):
        account.list("pods")
    with pytest.raises(KubectlError, match="forbidden"):
        account.within("default").list("jobs")


def test_nothing_is_left(control_plane: ControlPlane) -> None:
    with ControlPlane() as other:
        assert other.url != control_plane.url
        assert len(left_over(other.folder)) == 5  # four programs and a folder
    assert left_over(other.folder) == []


def test_nothing_is_left_of_a_killed_run(control_plane: ControlPlane) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert owner.stdout
    folder = Path(owner.stdout.readline().strip())
    assert folder.is_dir()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30
    while left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over(folder) == []


def pod(*command: str, shared: Path | None = None) -> Json:
    """Return a pod of this machine's programs that runs as nobody."""
    template = machine_template(command, shared)
    (worker,) = template["spec"]["containers"]
    worker |= {"image": EMPTY_IMAGE, "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    user = {"runAsUser": 65534, "runAsGroup": 65534}
    spec = {**template["spec"], "restartPolicy": "Never", "securityContext": user}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}


def ended(pod: Json) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def test_pod_runs_as_nobody(node: Node, kubectl: Kubectl, tmp_path: Path) -> None:
    who = tmp_path / "who"
    script = (
        f"import os, lighten_service; open('{who}', 'w').write(f'{{os.getuid()}} {{os.getpid()}}')"
    )
    kubectl.apply(pod(sys.executable, "-c", script, shared=tmp_path))
    assert kubectl.until("pod", "one", ended)["status"]["phase"] == "Succeeded"
    assert who.read_text() == "65534 1"


def test_pod_outlives_its_kubelet(node: Node, kubectl: Kubectl, tmp_path: Path) -> None:
    command = ("sh", "-c", f"until test -e {tmp_path}/go; do sleep 0.1; done; echo done")
    kubectl.apply(pod(*command, shared=tmp_path))
    kubectl.until("pod", "one", lambda pod: pod["status"].get("phase") == "Running")
    node.kill_kubelet()
    (tmp_path / "go").touch()
    node.start_kubelet()
    assert kubectl.until("pod", "one", ended)["status"]["phase"] == "Succeeded"
    assert kubectl("logs", "one") == "done\n"


def test_nothing_is_left_of_a_node(
    control_plane: ControlPlane, node: Node, kubectl: Kubectl
) -> None:
    with Node(control_plane, "node-2") as other:
        running = pod("sleep", "600")
        running["spec"]["nodeName"] = other.name
        kubectl.apply(running)
        kubectl.until("pod", "one", lambda pod: pod["status"].get("phase") == "Running")
        assert any("sleep" in each for each in left_over(other.folder))
    assert left_over(other.folder) == []
    kubectl("delete", "node", other.name)


def test_fake_nodes_take_pods(control_plane: ControlPlane, kubectl: Kubectl) -> None:
    with FakeNodes(control_plane, 20, gpus=4) as nodes:
        wanted = pod("sleep", "600")
        wanted["spec"] |= {"hostNetwork": False, "nodeSelector": {"lighten.test/fake": "true"}}
        kubectl.apply(wanted)
        placed = kubectl.until("pod", "one", lambda pod: pod["status"].get("phase") == "Running")
        assert placed["spec"]["nodeName"] in nodes.names
        kubectl("delete", "pod", "one")
    assert not [node for node in kubectl.list("nodes") if node["metadata"]["name"] in nodes.names]
