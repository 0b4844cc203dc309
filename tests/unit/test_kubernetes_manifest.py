"""What the executor asks Kubernetes for."""

import base64
import json
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.executors.kubernetes import (
    GpuProfile,
    KubernetesOptions,
    Limits,
    PriorityClass,
    admission,
    manifest,
    naming,
)
from lighten_service.executors.kubernetes.merging import merge
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.ports import LaunchRequest
from lighten_service.jobs.ticket import Ticket

GIB = 1 << 30
JOB_ID = "01m80vzcva971hnc5062sje5wf"
A100 = GpuProfile(
    name="a100",
    node_selector={"gpu": "a100"},
    tolerations=[{"key": "gpu", "operator": "Exists"}],
    runtime_class="nvidia",
    max_gpus=2,
)
OPTIONS = KubernetesOptions(
    namespace="lighten",
    server="lighten.lighten.svc:8470",
    image="registry.test/worker:1",
    gpu_profiles=[A100],
    trusted=lambda: "",
    limits=Limits(gpus=4, memory_bytes=64 * GIB, scratch_bytes=128 * GIB),
)


def request(**resources: Any) -> LaunchRequest:
    given = {"memory_bytes": 8 * GIB, "scratch_bytes": 20 * GIB, **resources}
    return LaunchRequest(
        project="vision",
        job_id=JOB_ID,
        name=f"projects/vision/jobs/{JOB_ID}",
        launch=3,
        token="secret",
        resources=pb.Resources(**given),
    )


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def worker_of(job: dict[str, Any]) -> dict[str, Any]:
    (worker,) = (each for each in pod_of(job)["containers"] if each["name"] == "worker")
    found: dict[str, Any] = worker
    return found


def test_job_and_secret_are_what_the_api_takes() -> None:
    options = replace(OPTIONS, queue="team", runtime_class="kata", service_account="worker")
    job = manifest.job(
        request(gpus=2, gpu_profile="a100", run_timeout=Duration(seconds=60)), options
    )
    for item in (job, manifest.secret(request(), options, "some-uid")):
        kubernetes_validate.validate(item, "1.36", strict=True)


def test_job_has_a_name_and_labels_that_lead_back() -> None:
    job = manifest.job(request(), OPTIONS)
    assert job["metadata"]["name"] == f"lighten-{JOB_ID}-3"
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert naming.key_of(metadata, "lighten") == (JOB_ID, 3)
        assert naming.key_of(metadata, "another") is None
        wanted = dict(part.split("=") for part in naming.selector("lighten").split(","))
        assert wanted.items() <= metadata["labels"].items()


def test_job_is_never_repeated_by_itself() -> None:
    spec = manifest.job(request(), OPTIONS)["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["ttlSecondsAfterFinished"] == 3600
    ignore, fail = spec["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [1, 2, 4])
    # A deadline of the Job would count its time in the queue.
    assert "activeDeadlineSeconds" not in spec


def test_worker_has_no_rights() -> None:
    job = manifest.job(request(), OPTIONS)
    pod, worker = pod_of(job), worker_of(job)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65534
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = worker["securityContext"]
    assert context["allowPrivilegeEscalation"] is context["privileged"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert (context["runAsUser"], context["seccompProfile"]) == (65534, {"type": "RuntimeDefault"})
    assert context["capabilities"] == {"drop": ["ALL"], "add": []}


def test_lost_nodes_are_tolerated_for_seconds() -> None:
    tolerated = {
        each["key"]: each["tolerationSeconds"]
        for each in pod_of(manifest.job(request(), OPTIONS))["tolerations"]
    }
    assert tolerated == {
        "node.kubernetes.io/not-ready": 10,
        "node.kubernetes.io/unreachable": 10,
    }


def test_resources_are_requests_and_limits() -> None:
    job = manifest.job(request(gpus=2, gpu_profile="a100"), OPTIONS)
    amounts = worker_of(job)["resources"]
    assert amounts["requests"] == amounts["limits"]
    assert amounts["limits"]["cpu"] == "4000m"
    assert amounts["limits"]["memory"] == str(8 * GIB)
    assert amounts["limits"]["nvidia.com/gpu"] == "2"
    assert int(amounts["limits"]["ephemeral-storage"]) > 20 * GIB
    volumes = {volume["name"]: volume for volume in pod_of(job)["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": str(20 * GIB)}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": str(GIB)}
    small = manifest.job(request(memory_bytes=GIB), OPTIONS)
    (shm,) = (volume for volume in pod_of(small)["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"]["sizeLimit"] == str(GIB // 2)


def test_gpu_profile_chooses_nodes() -> None:
    pod = pod_of(manifest.job(request(gpus=1, gpu_profile="a100"), OPTIONS))
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert {"key": "gpu", "operator": "Exists"} in pod["tolerations"]
    assert pod["runtimeClassName"] == "nvidia"
    plain = manifest.job(request(gpus=1), OPTIONS)
    assert "nodeSelector" not in pod_of(plain) or pod_of(plain)["nodeSelector"] == {}
    assert worker_of(plain)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    cpu = worker_of(manifest.job(request(), OPTIONS))
    assert not any("gpu" in name for name in cpu["resources"]["limits"])


def test_deadline_of_the_pod_is_a_backstop() -> None:
    assert "activeDeadlineSeconds" not in pod_of(manifest.job(request(), OPTIONS))
    timed = manifest.job(request(run_timeout=Duration(seconds=60, nanos=1)), OPTIONS)
    assert pod_of(timed)["activeDeadlineSeconds"] == 61 + 900
    endless = manifest.job(request(run_timeout=Duration(seconds=1 << 40)), OPTIONS)
    assert pod_of(endless)["activeDeadlineSeconds"] == (1 << 31) - 1


def test_queue_and_priority_are_labels_of_the_job() -> None:
    options = replace(
        OPTIONS,
        queue="team",
        priority_classes=[PriorityClass(-1000, "low", "idle"), PriorityClass(50, "high", "urgent")],
    )
    for priority, pod_class, queue_class in ((49, "low", "idle"), (50, "high", "urgent")):
        job = manifest.job(request(priority=priority), options)
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["labels"][naming.QUEUE_LABEL] == "team"
        assert job["metadata"]["labels"][naming.QUEUE_PRIORITY_LABEL] == queue_class
        assert naming.QUEUE_LABEL not in job["spec"]["template"]["metadata"]["labels"]
        assert pod_of(job)["priorityClassName"] == pod_class
    job = manifest.job(request(), OPTIONS)
    assert job["spec"]["suspend"] is False
    assert "priorityClassName" not in pod_of(job)


def test_ticket_lies_in_a_secret_that_goes_with_the_job() -> None:
    secret = manifest.secret(request(), replace(OPTIONS, server_name="lighten"), "some-uid")
    assert secret["immutable"] is True
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", "some-uid")
    ticket = Ticket.from_line(base64.b64decode(secret["data"]["ticket.json"]))
    assert (ticket.token, ticket.launch, ticket.server_name) == ("secret", 3, "lighten")
    assert ticket.grace_seconds == 30
    job = manifest.job(request(), OPTIONS)
    assert "secret" not in json.dumps(worker_of(job)["env"])
    assert worker_of(job)["args"] == ["--ticket", "/var/run/lighten/ticket.json"]
    volumes = {volume["name"]: volume for volume in pod_of(job)["volumes"]}
    assert volumes["ticket"]["secret"]["secretName"] == secret["metadata"]["name"]


def test_template_is_the_base_and_our_fields_win() -> None:
    template = {
        "metadata": {"labels": {"team": "a", naming.JOB_LABEL: "x"}, "annotations": {"a": "b"}},
        "spec": {
            "automountServiceAccountToken": True,
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "containers": [
                {"name": "proxy", "image": "proxy:1"},
                {
                    "name": "worker",
                    "image": "theirs",
                    "command": ["/opt/python", "worker.py"],
                    "env": [
                        {"name": "LIGHTEN_INSTANCE_ID", "value": "me"},
                        {"name": "NCCL_DEBUG", "value": "INFO"},
                    ],
                    "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                    "securityContext": {
                        "privileged": True,
                        "runAsUser": 0,
                        "seccompProfile": {"type": "Localhost", "localhostProfile": "open.json"},
                        "capabilities": {"add": ["SYS_ADMIN"]},
                    },
                },
            ],
            "volumes": [
                {"name": "cache", "emptyDir": {}},
                {"name": "scratch", "hostPath": {"path": "/fast"}},
            ],
        },
    }
    before = json.dumps(template)
    job = manifest.job(request(), replace(OPTIONS, pod_template=template))
    assert json.dumps(template) == before
    metadata = job["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "a"
    assert metadata["labels"][naming.JOB_LABEL] == JOB_ID
    assert metadata["annotations"] == {"a": "b"}
    pod, worker = pod_of(job), worker_of(job)
    assert pod["automountServiceAccountToken"] is False
    assert {"key": "spot", "operator": "Exists"} in pod["tolerations"]
    assert [each["name"] for each in pod["containers"]] == ["proxy", "worker"]
    assert worker["image"] == OPTIONS.image
    assert worker["command"] == ["/opt/python", "worker.py"]
    assert (
        worker["securityContext"] == worker_of(manifest.job(request(), OPTIONS))["securityContext"]
    )
    env = {each["name"]: each for each in worker["env"]}
    assert env["NCCL_DEBUG"]["value"] == "INFO"
    told = {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert env["LIGHTEN_INSTANCE_ID"] == {"name": "LIGHTEN_INSTANCE_ID", "valueFrom": told}
    assert {mount["mountPath"] for mount in worker["volumeMounts"]} == {
        "/cache",
        "/dev/shm",
        "/scratch",
        "/var/run/lighten",
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    # A faster disk is the operator's to choose.
    assert volumes["scratch"] == {"name": "scratch", "hostPath": {"path": "/fast"}}
    assert set(volumes) == {"cache", "scratch", "shm", "ticket"}


def test_merge_changes_neither_side() -> None:
    base = {"a": {"b": 1}, "env": [{"name": "x", "value": "1"}], "args": ["1"]}
    over = {"a": {"c": 2}, "env": [{"name": "x", "valueFrom": {}}, {"name": "y"}], "args": ["2"]}
    merged = merge(base, over)
    assert merged["a"] == {"b": 1, "c": 2}
    assert merged["args"] == ["2"]
    assert [each["name"] for each in merged["env"]] == ["x", "y"]
    assert base["a"] == {"b": 1}
    assert over["a"] == {"c": 2}


@pytest.mark.parametrize(
    ("resources", "reason", "field"),
    [
        ({"gpus": 5}, "RESOURCES_UNAVAILABLE", "resources.gpus"),
        ({"gpus": 3, "gpu_profile": "a100"}, "RESOURCES_UNAVAILABLE", "resources.gpus"),
        ({"memory_bytes": 65 * GIB}, "RESOURCES_UNAVAILABLE", "resources.memory_bytes"),
        ({"scratch_bytes": 129 * GIB}, "RESOURCES_UNAVAILABLE", "resources.scratch_bytes"),
        ({"gpus": 1, "gpu_profile": "h100"}, "GPU_PROFILE_UNKNOWN", "resources.gpu_profile"),
    ],
)
def test_what_can_never_run_is_refused(resources: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        admission.check(request(**resources).resources, OPTIONS)
    assert (caught.value.reason, caught.value.field) == (reason, field)
