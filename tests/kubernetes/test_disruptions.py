"""What clusters do to pods, done for real: what becomes of the job, and what its caller reads."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighten import v1 as pb
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Json, Kubectl
from tests.support.cluster.node import EMPTY_IMAGE, GPUS, Node
from tests.support.pod_server import DEADLINE_MARGIN, GRACE, MIB, PodServer

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def server(cluster: Cluster, node: Node, kubectl: Kubectl, tmp_path: Path) -> Iterator[PodServer]:
    with PodServer(cluster, kubectl, tmp_path) as server:
        yield server


def check_success(job: pb.Job, *, attempt: int, crashes: int = 0, disruptions: int = 0) -> None:
    """The job is SUCCEEDED by this attempt, after so many losses."""
    assert job.state == pb.JOB_STATE_SUCCEEDED, job
    assert (job.attempt, job.crashes, job.disruptions) == (attempt, crashes, disruptions)
    assert job.result.attempt == attempt


def check_failure(job: pb.Job, reason: str, kind: pb.ErrorKind.ValueType) -> None:
    assert job.state == pb.JOB_STATE_FAILED, job
    assert (job.error.reason, job.error.kind) == (reason, kind)


def jobs(kubectl: Kubectl) -> list[str]:
    return sorted(job["metadata"]["name"] for job in kubectl.list("jobs"))


# --- the launch ends ----------------------------------------------------------------------------


def test_undisturbed_job(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("events=3", gpus=1)
    check_success(server.end(name), attempt=1)
    assert jobs(kubectl) == [server.kube_job(name)]


def test_out_of_memory(server: PodServer) -> None:
    job = server.end(server.create("eat=512", memory_bytes=256 * MIB))
    check_failure(job, "OUT_OF_MEMORY", pb.ERROR_KIND_RESOURCE)
    assert job.error.field == "resources.memory_bytes"
    assert job.error.metadata["limit_bytes"] == str(256 * MIB)


def test_out_of_disk(server: PodServer) -> None:
    job = server.end(server.create("fill=160", scratch_bytes=64 * MIB))
    check_failure(job, "OUT_OF_DISK", pb.ERROR_KIND_RESOURCE)
    assert job.error.field == "resources.scratch_bytes"


def test_crash_is_tried_again(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("exit=9@1 events=1")
    check_success(server.end(name), attempt=2, crashes=1)
    assert server.losses(name) == ["WORKER_LOST"]
    assert jobs(kubectl) == [server.kube_job(name, 1), server.kube_job(name, 2)]


def test_deleted_pod(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("sleep=600@1")
    server.running(name)
    kubectl("delete", "pod", server.pod(name)["metadata"]["name"], "--wait=false")
    check_success(server.end(name), attempt=2, disruptions=1)
    assert "WORKER_DELETED" in server.losses(name)
    assert server.kube_job(name, 2) in jobs(kubectl)


def test_pod_past_its_deadline(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("sleep=600", run_timeout=300)
    server.running(name)
    pod = server.pod(name)
    assert pod["spec"]["activeDeadlineSeconds"] == 300 + DEADLINE_MARGIN
    kubectl.patch("pod", pod["metadata"]["name"], {"spec": {"activeDeadlineSeconds": 1}})
    check_failure(server.end(name), "RUN_TIMEOUT", pb.ERROR_KIND_RESOURCE)


@pytest.mark.parametrize("image", ["lighten.test/missing:1", "lighten.test/No/Name"])
def test_bad_image(
    cluster: Cluster, node: Node, kubectl: Kubectl, tmp_path: Path, image: str
) -> None:
    with PodServer(cluster, kubectl, tmp_path, KUBERNETES__IMAGE=image) as server:
        job = server.end(server.create("events=1"))
    check_failure(job, "IMAGE_NOT_PULLABLE", pb.ERROR_KIND_SYSTEM)
    assert image in job.error.message


# --- the launch carries on ----------------------------------------------------------------------


def test_evicted_pod(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("sleep=600@1")
    server.running(name)
    kubectl.evict(server.pod(name)["metadata"]["name"])
    queued = server.until(name, lambda job: job.state == pb.JOB_STATE_QUEUED)
    assert queued.disruptions == 1
    check_success(server.end(name), attempt=2, disruptions=1)
    assert "WORKER_EVICTED" in server.losses(name)
    assert jobs(kubectl) == [server.kube_job(name)]


def test_preempted_pod(server: PodServer, kubectl: Kubectl) -> None:
    important = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "important"},
        "value": 1000,
    }
    kubectl.apply(important)
    name = server.create("sleep=600@1", gpus=GPUS)
    server.running(name)
    kubectl.apply(idle_pod("rival", priorityClassName="important"))
    server.until(name, lambda job: "Insufficient nvidia.com/gpu" in job.state_reason)
    kubectl("delete", "pod", "rival", "--grace-period=1")
    check_success(server.end(name), attempt=2, disruptions=1)
    assert "WORKER_PREEMPTED" in server.losses(name)
    assert jobs(kubectl) == [server.kube_job(name)]


def test_suspended_job(cluster: Cluster, node: Node, kubectl: Kubectl, tmp_path: Path) -> None:
    """Admitted, preempted and admitted again, as Kueue does it."""
    with PodServer(cluster, kubectl, tmp_path, KUBERNETES__QUEUE="lighten") as server:
        name = server.create("sleep=600@1")
        server.until(name, lambda job: "Kueue" in job.state_reason)
        kube_job = server.kube_job(name)
        labels = kubectl.get("job", kube_job)["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "lighten"
        admit(kubectl, kube_job, node)
        server.running(name)
        kubectl.patch("job", kube_job, {"spec": {"suspend": True}})
        server.until(name, lambda job: job.state == pb.JOB_STATE_QUEUED)
        kubectl.until("job", kube_job, lambda job: not job["status"].get("active"))
        admit(kubectl, kube_job, node)
        check_success(server.end(name), attempt=2, disruptions=1)
        assert "WORKER_SUSPENDED" in server.losses(name)
        selector = kubectl.get("job", kube_job)["spec"]["template"]["spec"]["nodeSelector"]
    assert selector == {"kubernetes.io/hostname": node.name}
    assert jobs(kubectl) == [kube_job]


# --- waiting ------------------------------------------------------------------------------------


def test_unschedulable_job(server: PodServer, kubectl: Kubectl) -> None:
    name = server.create("events=1", gpus=GPUS + 1, queue_timeout=8)
    queued = server.until(name, lambda job: "Insufficient" in job.state_reason)
    assert queued.state == pb.JOB_STATE_QUEUED
    assert "nvidia.com/gpu" in queued.state_reason
    job = server.end(name)
    check_failure(job, "QUEUE_TIMEOUT", pb.ERROR_KIND_RESOURCE)
    assert "nvidia.com/gpu" in job.error.message
    kubectl("wait", "--for=delete", f"job/{server.kube_job(name)}", "--timeout=30s")
    assert kubectl.list("pods") == []


def test_job_waits_for_quota(server: PodServer, kubectl: Kubectl) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    kubectl.apply(quota)
    kubectl.until("resourcequota", "small", lambda quota: "hard" in quota.get("status", {}))
    name = server.create("events=1")
    queued = server.until(name, lambda job: "quota" in job.state_reason)
    assert queued.state == pb.JOB_STATE_QUEUED
    kubectl("delete", "resourcequota", "small")
    check_success(server.end(name), attempt=1)


# --- a caller changes its mind ------------------------------------------------------------------


@pytest.mark.parametrize("script", ["sleep=600", "deaf=600"])
def test_cancelled_job_frees_its_gpu(server: PodServer, kubectl: Kubectl, script: str) -> None:
    name = server.create(script, gpus=GPUS)
    server.running(name)
    pod = server.pod(name)["metadata"]["name"]
    server.cancel(name)
    cancelled = time.monotonic()
    assert server.end(name).state == pb.JOB_STATE_CANCELLED
    kubectl("wait", "--for=delete", f"pod/{pod}", "--timeout=60s")
    # The worker's own grace period, then the server's kill.
    assert time.monotonic() - cancelled < 2 * GRACE + 5
    assert jobs(kubectl) == []
    check_success(server.end(server.create("events=1", gpus=GPUS)), attempt=1)


# --- parts of the installation go away ----------------------------------------------------------


def test_api_server_is_away(
    server: PodServer, control_plane: ControlPlane, kubectl: Kubectl
) -> None:
    names = [server.create(f"until={server.shared}/go") for _ in range(2)]
    for name in names:
        server.running(name)
    control_plane.kill_api_server()
    try:
        late = server.create("events=1")
        waiting = server.until(late, lambda job: "Kubernetes API" in job.state_reason)
        assert waiting.state == pb.JOB_STATE_QUEUED
        (server.shared / "go").touch()
        for name in names:
            check_success(server.end(name), attempt=1)
    finally:
        control_plane.start_api_server()
    check_success(server.end(late), attempt=1)
    # Made once each; those of jobs that ended meanwhile may be gone.
    assert set(jobs(kubectl)) <= {server.kube_job(name) for name in [*names, late]}


def test_server_is_killed(server: PodServer, kubectl: Kubectl) -> None:
    """One pod runs on, another is evicted meanwhile; both jobs end well."""
    kept = server.create(f"until={server.shared}/go")
    evicted = server.create("sleep=600@1")
    server.running(kept)
    server.running(evicted)
    server.kill()
    kubectl.evict(server.pod(evicted)["metadata"]["name"])
    server.start()
    (server.shared / "go").touch()
    check_success(server.end(kept), attempt=1)
    check_success(server.end(evicted), attempt=2, disruptions=1)
    assert set(jobs(kubectl)) <= {server.kube_job(kept), server.kube_job(evicted)}


def test_node_is_lost(
    server: PodServer, control_plane: ControlPlane, node: Node, kubectl: Kubectl
) -> None:
    """Its pod never ends at the API server, and its worker runs on for ever."""
    name = server.create("sleep=600@1")
    server.running(name)
    with Node(control_plane, "node-2") as other:
        node.kill_kubelet()
        try:
            job = server.end(name)
            check_success(job, attempt=2, disruptions=1)
            assert "NODE_LOST" in server.losses(name)
            assert server.pod(name, launch=2)["spec"]["nodeName"] == other.name
        finally:
            node.start_kubelet()
    kubectl("delete", "node", other.name)


def idle_pod(name: str, **spec: str) -> Json:
    """Return a pod that takes every GPU and does nothing; it may never start."""
    limits = {"nvidia.com/gpu": str(GPUS)}
    container = {
        "name": "idle",
        "image": EMPTY_IMAGE,
        "command": ["/no"],
        "resources": {"limits": limits},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**spec, "containers": [container]},
    }


def admit(kubectl: Kubectl, kube_job: str, node: Node) -> None:
    """Let a suspended Job go to nodes of one flavour, as Kueue does."""
    selector = {"nodeSelector": {"kubernetes.io/hostname": node.name}}
    template = {"template": {"spec": selector}}
    kubectl.patch("job", kube_job, {"spec": {**template, "suspend": False}})
