"""The chart at a real API server: installed, changed, removed; and a job through what it made."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import lighten
from lighten import v1 as pb
from tests.support.certificates import Authority
from tests.support.chart import CHART, RELEASE, find, helm, render
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl, KubectlError
from tests.support.cluster.node import EMPTY_IMAGE, Node
from tests.support.cluster.pods import machine_template
from tests.support.cluster.workspace import free_port
from tests.support.models import convnet, write_samples

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]

Json = dict[str, Any]
USER = 65532
TOKEN = "a-token-of-the-test"
PORTS = ("grpc", "objects", "metrics", "worker")
SETTINGS = ("port", "http_port", "metrics_port", "worker_port")


def test_install_upgrade_uninstall(cluster: Cluster, kubectl: Kubectl) -> None:
    where = (f"--namespace={kubectl.namespace}", f"--kubeconfig={cluster.kubeconfig}")
    minimal = CHART / "ci" / "minimal-values.yaml"

    said = helm("install", RELEASE, CHART, *where, f"--values={minimal}")
    assert f"lighten.{kubectl.namespace}.svc:8470" in said
    before = kubectl.get("statefulset", RELEASE)
    assert before["spec"]["replicas"] == 1

    changed = {"settings": {"log_level": "debug"}, "persistence": {"size": "20Gi"}}
    helm("upgrade", RELEASE, CHART, *where, f"--values={minimal}", values=changed)
    after = kubectl.get("statefulset", RELEASE)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["template"] != before["spec"]["template"]
    kubectl.until("persistentvolumeclaim", f"data-{RELEASE}-0", lambda _: True)

    helm("uninstall", RELEASE, *where, "--wait")
    for kind in ("statefulset", "service", "role", "rolebinding", "networkpolicy"):
        assert kubectl.list(kind) == []
    # The jobs outlive the release.
    (claim,) = kubectl.list("persistentvolumeclaim")
    assert "deletionTimestamp" not in claim["metadata"]


@dataclass
class Installed:
    kubectl: Kubectl
    client: lighten.Client
    folder: Path


@pytest.fixture
def installed(
    control_plane: ControlPlane, node: Node, kubectl: Kubectl, tmp_path: Path
) -> Iterator[Installed]:
    """A server of the chart on the node. What its images hold is mounted from this machine."""
    authority = Authority(tmp_path / "tls")
    hosts = ("127.0.0.1", f"{RELEASE}.{kubectl.namespace}.svc")
    tls = authority.sign("server", hosts=hosts)
    ports = {name: free_port() for name in PORTS}
    objects = render(
        values=_values(control_plane.url, ports), namespace=kubectl.namespace, release=RELEASE
    )
    _run_from_this_machine(find(objects, "StatefulSet"), ports)
    kubectl.apply(*_before(tmp_path, authority.ca, *tls), *objects)
    try:
        kubectl.until("pod", f"{RELEASE}-0", _is_ready, seconds=120)
        target = f"grpcs://127.0.0.1:{ports['grpc']}"
        with lighten.Client(target, token=TOKEN, ca=authority.ca) as client:
            yield Installed(kubectl, client, tmp_path)
    finally:
        # Shown with a test that fails.
        print(kubectl("get", "jobs,pods,events", "--output=wide"))
        for component in ("server", "worker"):
            label = f"--selector=app.kubernetes.io/component={component}"
            with suppress(KubectlError):
                print(kubectl("logs", label, "--tail=50"))
        kubectl("delete", "statefulset", RELEASE, "--wait")


def _is_ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _values(api_server: str, ports: dict[str, int]) -> Json:
    host, port = api_server.removeprefix("https://").split(":")
    objects = f"https://127.0.0.1:{ports['objects']}"
    repository, tag = EMPTY_IMAGE.split(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "tls": {"existingSecret": "server-tls"},
        "auth": {"existingSecret": "server-tokens"},
        "persistence": {"existingClaim": "server-data"},
        "server": {
            "resources": {"requests": {"memory": "128Mi"}},
            # There is no kube-proxy.
            "env": [
                {"name": "KUBERNETES_SERVICE_HOST", "value": host},
                {"name": "KUBERNETES_SERVICE_PORT", "value": port},
            ],
        },
        "workers": {
            "image": {"repository": repository, "tag": tag},
            "cpus": 0.5,
            "podTemplate": machine_template(
                (sys.executable, "-P", "-m", "lighten_service.worker.main")
            ),
        },
        "settings": {
            **{name: ports[port] for name, port in zip(SETTINGS, PORTS, strict=True)},
            "public_url": objects,
            "worker_url": objects,
            "kubernetes": {"server": f"127.0.0.1:{ports['worker']}"},
        },
    }


def _run_from_this_machine(statefulset: Json, ports: dict[str, int]) -> None:
    machine = machine_template()["spec"]
    spec = statefulset["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    spec["hostNetwork"] = True
    spec["volumes"] += machine["volumes"]
    server["volumeMounts"] += machine["containers"][0]["volumeMounts"]
    server["command"] = [sys.executable, "-P", "-m", "lighten_service.server"]
    for port in server["ports"]:
        port["containerPort"] = ports[port["name"]]


def _before(folder: Path, ca: Path, certificate: Path, key: Path) -> list[Json]:
    """Return what an operator has made before the chart: secrets, and here the volume too."""
    data = folder / "data"
    data.mkdir()
    data.chmod(0o777)
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens = f'[[token]]\nname = "test"\nsha256 = "{digest}"\nproject = "*"\nrole = "admin"\n'
    volume = f"{RELEASE}-{folder.name}".replace("_", "-")
    size = {"storage": "1Gi"}
    modes = ["ReadWriteOnce"]
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "server-tls"},
            "stringData": {
                "tls.crt": certificate.read_text(),
                "tls.key": key.read_text(),
                "ca.crt": ca.read_text(),
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "server-tokens"},
            "stringData": {"tokens.toml": tokens},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {"capacity": size, "accessModes": modes, "hostPath": {"path": str(data)}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "server-data"},
            "spec": {
                "storageClassName": "",
                "volumeName": volume,
                "accessModes": modes,
                "resources": {"requests": size},
            },
        },
    ]


def test_job_runs_through_what_the_chart_made(installed: Installed) -> None:
    client, kubectl, folder = installed.client, installed.kubectl, installed.folder
    onnx.save(convnet(), folder / "model.onnx")
    data = write_samples(folder / "calibration.npz", 32, seed=1)
    job = client.submit(
        {
            "model": {
                "artifact": {"uri": client.upload(folder / "model.onnx").uri},
                "format": "ONNX",
            },
            "calibration": {"data": {"uri": client.upload(data).uri}, "format": "NPZ"},
            "plan": {
                "quantization": {"weights": "INT8", "activations": "INT8"},
                "steps": {"steps": [{"calibrate": {"scheme": "MIN_MAX"}}]},
            },
            "resources": {"memory_bytes": 2 << 30, "scratch_bytes": 1 << 30},
        }
    )
    # A server that is gone for a while loses nothing.
    kubectl("delete", "pod", f"{RELEASE}-0", "--wait=false")
    ended = client.wait(job.name, timeout=180)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.error
    assert ended.attempt == 1

    (worker,) = kubectl.list("pods", "app.kubernetes.io/component=worker")
    assert worker["spec"]["serviceAccountName"] == f"{RELEASE}-worker"
    assert worker["spec"]["securityContext"]["runAsUser"] == USER
    name = worker["metadata"]["name"]
    kubectl.until("pod", name, lambda pod: pod["status"]["phase"] == "Succeeded")
    client.download(job.name, folder / "out")
    assert (folder / "out" / "model.qdq.onnx").stat().st_size > 0
