"""The main job in real pods, over TLS and S3: MobileNetV2 to the same bytes as on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import onnx
import pytest
import yaml

import lighten
from lighten import v1 as pb
from lighten.spec import load_spec
from tests.support.certificates import Authority
from tests.support.cluster.access import make_namespace
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.kubectl import Json, Kubectl
from tests.support.cluster.node import EMPTY_IMAGE, Node
from tests.support.cluster.pods import machine_template
from tests.support.lighten_server import LightenServer, s3_settings
from tests.support.models import convnet, write_samples
from tests.support.seaweedfs import SeaweedFS
from tools import demo
from tools.demo_data import prepare

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1500)]

COMMAND = (sys.executable, "-P", "-m", "lighten_service.worker.main")
NAMESPACE = "main-job"
MEMORY = 4 << 30
# Threads decide the order in which floats are added, so that both executors get as many.
CPUS = 1
# Enough to choose ranges by, and few enough for a test.
PHOTOS = 16
JOB_SECONDS = 900.0
# What a worker loads for this job.
ENGINE = "lighten_service.worker.pipeline, lighten_service.worker.engines.torch_engine"
# What may be added to it until a pod is attached.
ATTACH_SECONDS = 2.0


@dataclass
class Pods:
    """A server whose workers are pods, its caller and its operator."""

    client: lighten.Client
    kubectl: Kubectl

    def pod(self, job: str) -> Json:
        """Wait for the first pod of a job."""
        selector = f"lighten.dev/job={job.rsplit('/', 1)[1]}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := self.kubectl.list("pods", selector):
                return found[0]
            time.sleep(0.2)
        raise TimeoutError(self.kubectl("get", "jobs,pods,events"))


@pytest.fixture(scope="module")
def storage(seaweedfs: SeaweedFS) -> Mapping[str, str]:
    """The settings of a server that reads the demo's model and photos, and writes beside them."""
    demo.CACHE.mkdir(parents=True, exist_ok=True)
    demo.upload(seaweedfs, prepare(demo.CACHE, print))
    return s3_settings(seaweedfs, f"s3://{demo.BUCKET}/lighten")


@pytest.fixture(scope="module")
def spec() -> pb.JobSpec:
    uris = {name: f"s3://{demo.BUCKET}/{key}" for name, key in demo.KEYS.items()}
    spec = load_spec(demo.SPEC.format_map(uris))
    for photos in (spec.calibration, spec.evaluation):
        photos.max_samples = PHOTOS
    spec.resources.memory_bytes = MEMORY
    return spec


@pytest.fixture(scope="module")
def pods(
    cluster: Cluster,
    node: Node,
    storage: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("pods")
    authority = Authority(folder)
    certificate, key = authority.sign("server")
    template = folder / "pod.yaml"
    template.write_text(yaml.safe_dump(machine_template(COMMAND)))
    make_namespace(cluster.kubectl, NAMESPACE)
    settings = {
        **storage,
        "LIGHTEN_TLS__CERT": str(certificate),
        "LIGHTEN_TLS__KEY": str(key),
        "LIGHTEN_TLS__CA": str(authority.ca),
        "LIGHTEN_EXECUTOR__KIND": "kubernetes",
        "LIGHTEN_KUBERNETES__NAMESPACE": NAMESPACE,
        "LIGHTEN_KUBERNETES__IMAGE": EMPTY_IMAGE,
        "LIGHTEN_KUBERNETES__KUBECONFIG": str(cluster.kubeconfig),
        "LIGHTEN_KUBERNETES__POD_TEMPLATE": str(template),
        "LIGHTEN_KUBERNETES__CPUS": str(CPUS),
    }
    with (
        LightenServer(folder / "server", settings) as server,
        lighten.Client(server.target, ca=authority.ca) as client,
    ):
        yield Pods(client, cluster.kubectl.within(NAMESPACE))
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def on_this_machine(
    storage: Mapping[str, str], spec: pb.JobSpec, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """The digests that the local executor's worker gives."""
    shares = {
        "LIGHTEN_EXECUTOR__CPU_SLOTS": str(len(os.sched_getaffinity(0)) // CPUS),
        "LIGHTEN_EXECUTOR__WARM_WORKERS": "0",
    }
    folder = tmp_path_factory.mktemp("local")
    with (
        LightenServer(folder, {**storage, **shares}) as server,
        lighten.Client(server.target) as client,
    ):
        job = client.wait(client.submit(spec).name, timeout=JOB_SECONDS)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert job.result.provenance.threads == CPUS
    return digests(job)


def digests(job: pb.Job) -> Mapping[str, str]:
    """Return the SHA-256 of every artifact but the report, which tells times."""
    return {
        artifact.name: artifact.sha256
        for artifact in job.result.artifacts
        if artifact.kind != pb.ARTIFACT_KIND_REPORT
    }


def test_a_pod_gives_the_bytes_of_a_local_worker(
    pods: Pods, spec: pb.JobSpec, on_this_machine: Mapping[str, str]
) -> None:
    name = pods.client.submit(spec).name
    pod = pods.pod(name)
    events = list(pods.client.watch(name))
    job = pods.client.get(name)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert (job.attempt, job.crashes, job.disruptions) == (1, 0, 0)
    assert digests(job) == on_this_machine
    assert {"model.encodings", "model.onnx", "model.qdq.onnx"} <= set(digests(job))
    assert job.result.provenance.threads == CPUS
    assert {report.device for report in job.result.stages} == {"cpu"}
    restricted(pod)
    # What is its own, not its node's.
    (inventory,) = pods.client.capabilities().workers
    assert (inventory.cpus, inventory.memory_bytes) == (CPUS, MEMORY)

    scheduled = became(pods, pod, "PodScheduled")
    attached = first(events, lambda event: event.state_changed.to == pb.JOB_STATE_RUNNING)
    working = first(events, lambda event: event.HasField("stage_finished"))
    imports = cold_import()
    print(
        f"pod scheduled to attached {attached - scheduled:.1f} s, to inputs fetched "
        f"{working - scheduled:.1f} s; import of AIMET {imports:.1f} s"
    )
    assert attached - scheduled < imports + ATTACH_SECONDS


def test_a_job_that_was_evicted_gives_the_same_bytes(
    pods: Pods, spec: pb.JobSpec, on_this_machine: Mapping[str, str]
) -> None:
    name = pods.client.submit(spec).name
    pod = pods.pod(name)["metadata"]["name"]
    steps: list[tuple[int, str]] = []
    for event in pods.client.watch(name):
        if event.HasField("stage_started") and event.stage.kind == pb.Stage.KIND_STEP:
            steps.append((event.attempt, event.stage.step_id))
            if len(steps) == 3:
                pods.kubectl.evict(pod)
    job = pods.client.get(name)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert (job.attempt, job.crashes, job.disruptions) == (2, 0, 1)
    # What was finished is not done again.
    ids = [step.id for step in job.resolved_spec.plan.steps.steps]
    assert steps == [(1, ids[0]), (1, ids[1]), (1, ids[2]), (2, ids[2])]
    assert digests(job) == on_this_machine


def test_a_job_whose_gpu_does_not_work_says_that_it_ran_on_the_cpu(
    pods: Pods, tmp_path: Path
) -> None:
    """The node gives out GPUs that it does not have."""
    model = tmp_path / "convnet.onnx"
    onnx.save(convnet(), model)
    samples = write_samples(tmp_path / "calibration.npz", 8)
    spec = {
        "model": {"artifact": {"uri": pods.client.upload(model).uri}, "format": "ONNX"},
        "calibration": {"data": {"uri": pods.client.upload(samples).uri}, "format": "NPZ"},
        "plan": {"steps": {"steps": [{"calibrate": {}}]}},
        "resources": {"gpus": 1, "memory_bytes": MEMORY},
    }
    name = pods.client.submit(spec).name
    limits = pods.pod(name)["spec"]["containers"][0]["resources"]["limits"]
    job = pods.client.wait(name, timeout=JOB_SECONDS)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert limits["nvidia.com/gpu"] == "1"
    assert [warning.reason for warning in job.result.warnings].count("RAN_ON_CPU") == 1
    ran = {report.stage.kind: report for report in job.result.stages}
    step = ran[pb.Stage.KIND_STEP]
    assert (step.device, step.provider) == ("cpu", "CPUExecutionProvider")


def restricted(pod: Json) -> None:
    """The worker may do next to nothing on its node."""
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsUser"] == 65534
    assert pod["spec"]["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    mounts = container["volumeMounts"]
    writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
    assert writable == {"/scratch", "/dev/shm"}


def first(events: Sequence[pb.JobEvent], wanted: Callable[[pb.JobEvent], bool]) -> float:
    """Return when the first event of a kind was; Unix seconds."""
    return next(event.time.ToNanoseconds() / 1e9 for event in events if wanted(event))


def became(pods: Pods, pod: Json, condition: str) -> float:
    """Return when a condition of a pod became true; whole seconds, rounded down."""
    name = pod["metadata"]["name"]
    for found in pods.kubectl.get("pod", name)["status"]["conditions"]:
        if found["type"] == condition:
            return datetime.fromisoformat(found["lastTransitionTime"]).timestamp()
    raise AssertionError(f"{name} has no condition {condition}")


def cold_import() -> float:
    """Return the seconds that a process needs to load what the job does, without files cached."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {ENGINE}"], check=True)
    return time.monotonic() - began
