"""The Kubernetes executor against a real API server, controllers and scheduler."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import yaml

from lighten_service.executors.kubernetes import PriorityClass, connection, manifest
from lighten_service.executors.kubernetes.api import ApiError
from lighten_service.jobs.errors import (
    FailedPrecondition,
    LaunchDelayed,
    PermissionDenied,
    Unavailable,
)
from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchRequest, LaunchState
from lighten_service.jobs.ticket import EXIT_STOPPED
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster_executor import (
    MIB,
    QUICK,
    FakeKubelet,
    Json,
    Listener,
    job_name,
    options_for,
    pod_of,
)

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def kubelet(kubectl: Kubectl) -> FakeKubelet:
    return FakeKubelet(kubectl)


async def test_launch_is_one_job_and_one_secret(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl)) as listener:
        request = listener.request("token")
        ref = await listener.start(request)
        assert await listener.executor.launch(request) == ref.handle
        job = kubectl.get("job", job_name(ref))
        assert job["metadata"]["uid"] == ref.handle
        (secret,) = kubectl.list("secrets")
        (owner,) = secret["metadata"]["ownerReferences"]
        assert owner["uid"] == ref.handle
        status = await listener.hear(ref, lambda said: "node" in said.detail)
        assert status.state is LaunchState.WAITING
        await listener.executor.stop(ref, grace_seconds=0)
        assert (await listener.end(ref)).end is LaunchEnd.STOPPED
        assert kubectl.list("jobs") == kubectl.list("pods") == []
        assert listener.requests("create", "jobs") == {"201": 2.0, "409": 1.0}


async def test_launch_that_is_stopped_while_it_begins_leaves_nothing(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl)) as listener:
        request = listener.request()
        beginning = asyncio.create_task(listener.executor.launch(request))
        await asyncio.sleep(0)
        ref = LaunchRef(request.job_id, request.launch, "")
        await listener.executor.stop(ref, grace_seconds=0)
        await beginning
        assert (await listener.end(ref)).end is LaunchEnd.STOPPED
        assert kubectl.list("jobs") == []
        assert listener.requests("create", "jobs") == {"201": 2.0}


async def test_worker_runs_and_ends(kubectl: Kubectl, kubelet: FakeKubelet) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.run(pod)
        placed = await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        assert placed.instance_id == pod["metadata"]["uid"]
        assert await listener.executor.holds(ref, placed.instance_id)
        assert not await listener.executor.holds(ref, "another")
        # It may have come since: it is told to ask again, not that it is nobody.
        with pytest.raises(Unavailable):
            await listener.executor.holds(ref, "another")
        await kubelet.fail(pod, exitCode=7)
        ended = await listener.end(ref)
        assert ended.end is LaunchEnd.EXITED
        assert dict(ended.metadata) == {"exit_code": "7"}
        assert not await listener.executor.holds(ref, placed.instance_id)


# --- pods that go while their launch carries on -------------------------------------------------


async def test_evicted_pod_is_followed_by_another(kubectl: Kubectl, kubelet: FakeKubelet) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        first = await pod_of(kubectl, ref)
        await kubelet.run(first)
        await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        kubectl.evict(first["metadata"]["name"])
        await kubelet.fail(first, exitCode=EXIT_STOPPED)
        gone = await listener.hear(ref, lambda said: said.end is not None)
        assert (gone.state, gone.end) == (LaunchState.WAITING, LaunchEnd.EVICTED)
        assert gone.instance_id == first["metadata"]["uid"]
        await kubelet.remove(first)
        second = await pod_of(kubectl, ref, after=first["metadata"]["uid"])
        await kubelet.run(second)
        uid = second["metadata"]["uid"]
        await listener.hear(ref, lambda said: said.instance_id == uid)
        assert not await listener.executor.holds(ref, first["metadata"]["uid"])
        assert await listener.executor.holds(ref, uid)
        assert sum(said.end is not None for said in listener.said(ref)) == 1


async def test_queue_admits_suspends_and_admits_again(
    kubectl: Kubectl, kubelet: FakeKubelet
) -> None:
    options = options_for(
        kubectl, queue="team", priority_classes=[PriorityClass(0, queue="ordinary")]
    )
    async with Listener(options) as listener:
        ref = await listener.start()
        name = job_name(ref)
        labels = kubectl.get("job", name)["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "team"
        assert labels["kueue.x-k8s.io/priority-class"] == "ordinary"
        await listener.hear(ref, lambda said: "Kueue" in said.detail)
        assert kubectl.list("pods") == []
        kubectl.patch("job", name, {"spec": {"suspend": False}})
        first = await pod_of(kubectl, ref)
        await kubelet.run(first)
        await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        kubectl.patch("job", name, {"spec": {"suspend": True}})
        kubectl.until("pod", first["metadata"]["name"], _is_leaving)
        await kubelet.remove(first)
        gone = await listener.hear(ref, lambda said: said.end is not None)
        assert (gone.state, gone.end) == (LaunchState.WAITING, LaunchEnd.SUSPENDED)
        kubectl.patch("job", name, {"spec": {"suspend": False}})
        second = await pod_of(kubectl, ref, after=first["metadata"]["uid"])
        await kubelet.run(second)
        uid = second["metadata"]["uid"]
        await listener.hear(ref, lambda said: said.instance_id == uid)


async def test_reason_of_the_queue_is_told(kubectl: Kubectl) -> None:
    kubectl.apply(_WORKLOADS)
    kubectl.until("crd", "workloads.kueue.x-k8s.io", _is_established)
    async with Listener(options_for(kubectl, queue="team")) as listener:
        ref = await listener.start()
        message = "couldn't assign flavors: insufficient unused quota for nvidia.com/gpu"
        kubectl.apply(
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "Workload",
                "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": ref.handle}},
                "status": {
                    "conditions": [{"type": "QuotaReserved", "status": "False", "message": message}]
                },
            }
        )
        told = await listener.hear(ref, lambda said: said.detail == message)
        assert told.state is LaunchState.WAITING


async def test_deleted_pod_ends_the_launch(kubectl: Kubectl, kubelet: FakeKubelet) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.run(pod)
        await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
        await kubelet.fail(pod, exitCode=EXIT_STOPPED)
        assert (await listener.end(ref)).end is LaunchEnd.DELETED


async def test_pod_of_a_lost_node_is_given_up(kubectl: Kubectl, kubelet: FakeKubelet) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.run(pod)
        await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        # Nobody carries it out: there is no kubelet.
        kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", "--grace-period=1")
        ended = await listener.end(ref)
        assert ended.end is LaunchEnd.NODE_LOST
        assert ended.instance_id == pod["metadata"]["uid"]
        await _until_gone(kubectl, "jobs")


# --- pods that cannot start ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("ImagePullBackOff", LaunchEnd.IMAGE_FAILED),
        ("InvalidImageName", LaunchEnd.IMAGE_FAILED),
        ("CreateContainerConfigError", LaunchEnd.CONFIG_INVALID),
    ],
)
async def test_container_that_cannot_start(
    kubectl: Kubectl, kubelet: FakeKubelet, reason: str, end: LaunchEnd
) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.bind(pod)
        await kubelet.wait(pod, reason, "why it is so")
        ended = await listener.end(ref)
        assert ended.end is end
        assert reason in ended.detail
        assert "why it is so" in ended.detail
        await kubelet.remove(pod)
        await _until_gone(kubectl, "jobs")


async def test_quota_of_pods_is_waited_for(kubectl: Kubectl) -> None:
    kubectl.apply(_quota({"requests.memory": "1Mi"}))
    kubectl.until("resourcequota", "small", lambda quota: "used" in quota.get("status", {}))
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        told = await listener.hear(ref, lambda said: "exceeded quota" in said.detail)
        assert told.state is LaunchState.WAITING


async def test_quota_of_jobs_delays_the_launch(kubectl: Kubectl) -> None:
    kubectl.apply(_quota({"count/jobs.batch": "0"}))
    kubectl.until("resourcequota", "small", lambda quota: "used" in quota.get("status", {}))
    async with Listener(options_for(kubectl)) as listener:
        with pytest.raises(LaunchDelayed) as caught:
            await listener.start()
        assert caught.value.reason == "QUOTA_EXCEEDED"


@pytest.mark.parametrize("resource", ["jobs", "pods"])
async def test_admission_refuses(kubectl: Kubectl, resource: str) -> None:
    with _policy(kubectl, resource, "workers are not welcome"):
        async with Listener(options_for(kubectl)) as listener:
            if resource == "jobs":
                with pytest.raises(FailedPrecondition, match="workers are not welcome") as caught:
                    await listener.start()
                assert caught.value.reason == "ADMISSION_REFUSED"
            else:
                ended = await listener.end(await listener.start())
                assert ended.end is LaunchEnd.CONFIG_INVALID
                assert "workers are not welcome" in ended.detail
                assert ("cause", "ADMISSION_REFUSED") in ended.metadata


async def test_account_without_rights(cluster: Cluster, kubectl: Kubectl) -> None:
    reading = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]}]
    kubeconfig = cluster.account(kubectl.namespace, "reader", reading)
    async with Listener(options_for(kubectl, kubeconfig=kubeconfig)) as listener:
        with pytest.raises(PermissionDenied, match="cannot create resource") as caught:
            await listener.start()
        assert caught.value.reason == "KUBERNETES_FORBIDDEN"
        assert caught.value.retryable
        with pytest.raises(PermissionDenied):
            await listener.start()
    patient = replace(QUICK, forbidden=60.0)
    options = options_for(kubectl, kubeconfig=kubeconfig, timeouts=patient)
    async with Listener(options) as listener:
        with pytest.raises(LaunchDelayed, match="cannot create resource"):
            await listener.start()


async def test_rights_of_the_chart_are_enough(
    cluster: Cluster, kubectl: Kubectl, kubelet: FakeKubelet
) -> None:
    kubeconfig = cluster.account(kubectl.namespace, "server", RULES)
    async with Listener(options_for(kubectl, kubeconfig=kubeconfig)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.run(pod)
        await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        await listener.executor.stop(ref, grace_seconds=1)
        await asyncio.to_thread(kubectl.until, "pod", pod["metadata"]["name"], _is_leaving)
        await kubelet.remove(pod)
        assert (await listener.end(ref)).end is LaunchEnd.STOPPED
        for verb, resource in (("create", "jobs"), ("delete", "pods"), ("get", "pods/log")):
            assert "403" not in listener.requests(verb, resource)


async def test_namespace_that_is_not_there(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl.within("nowhere"))) as listener:
        with pytest.raises(FailedPrecondition) as caught:
            await listener.start()
        assert caught.value.reason == "NAMESPACE_MISSING"


async def test_template_that_the_server_refuses_is_found_at_the_start(kubectl: Kubectl) -> None:
    template = {"spec": {"nodeSelektor": {"gpu": "yes"}}}
    with pytest.raises(FailedPrecondition, match="nodeSelektor") as caught:
        async with Listener(options_for(kubectl, pod_template=template)):
            pass
    assert caught.value.reason == "POD_INVALID"


async def test_job_of_somebody_else_has_the_name(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl)) as listener:
        request = listener.request()
        foreign = manifest.job(request, listener.options)
        foreign["metadata"]["labels"] = {"app": "another"}
        kubectl.apply(foreign)
        with pytest.raises(FailedPrecondition) as caught:
            await listener.executor.launch(request)
        assert caught.value.reason == "JOB_NAME_TAKEN"
        assert len(kubectl.list("jobs")) == 1


# --- an API server that goes and comes ----------------------------------------------------------


async def test_api_server_that_is_away_delays_launches_and_keeps_stops(
    kubectl: Kubectl, kubelet: FakeKubelet, control_plane: ControlPlane
) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        pod = await pod_of(kubectl, ref)
        await kubelet.run(pod)
        placed = await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
        control_plane.kill_api_server()
        request = listener.request()
        for _ in range(200):
            with pytest.raises(LaunchDelayed, match="out of reach"):
                await listener.executor.launch(request)
        # Nearly all of them failed without a word to the server.
        assert sum(listener.requests("create", "jobs").values()) < 10
        assert await listener.executor.status(ref) == placed
        await listener.executor.stop(ref, grace_seconds=0)
        control_plane.start_api_server()
        await asyncio.to_thread(kubectl.until, "pod", pod["metadata"]["name"], _is_leaving)
        await kubelet.remove(pod)
        assert (await listener.end(ref)).end is LaunchEnd.STOPPED
        other = LaunchRef(request.job_id, request.launch, await _insist(listener, request))
        assert kubectl.get("job", job_name(other))["metadata"]["uid"] == other.handle
        # The watches came back too.
        await listener.hear(other, lambda said: "node" in said.detail)


async def test_start_without_an_api_server(kubectl: Kubectl, control_plane: ControlPlane) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        orphan = await listener.start()
    control_plane.kill_api_server()
    away = replace(QUICK, adoption=0.5)
    async with Listener(options_for(kubectl, timeouts=away)) as listener:
        await listener.executor.adopt([ref])
        status = await listener.executor.status(ref)
        assert status.state is LaunchState.UNSEEN
        assert "out of reach" in status.detail
        control_plane.start_api_server()
        await listener.hear(ref, lambda said: said.state is LaunchState.WAITING)
        await _until_gone(kubectl, "job", job_name(orphan))
        assert kubectl.get("job", job_name(ref))


async def test_credentials_that_expired_are_read_again(
    cluster: Cluster, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_RENEW_SECONDS", 0.0)
    kubeconfig = cluster.account(kubectl.namespace, "renewed", RULES)
    good = kubeconfig.read_text()
    token = yaml.safe_load(good)["users"][0]["user"]["token"]
    kubeconfig.write_text(good.replace(token, "expired"))
    async with Listener(options_for(kubectl, kubeconfig=kubeconfig)) as listener:
        request = listener.request()
        with pytest.raises(LaunchDelayed, match="out of reach"):
            await listener.executor.launch(request)
        kubeconfig.write_text(good)
        ref = LaunchRef(request.job_id, request.launch, await _insist(listener, request))
        await listener.hear(ref, lambda said: "node" in said.detail)


async def test_watch_that_is_too_old_lists_again(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl)) as listener:
        ref = await listener.start()
        await listener.hear(ref, lambda said: "node" in said.detail)
        reflector = listener.executor._following._jobs
        reflector._version = "1"
        lists = sum(listener.requests("list", "jobs").values())
        with pytest.raises(ApiError) as caught:
            await reflector._watch()
        assert caught.value.gone
        await reflector._recover(caught.value)
        assert reflector._version == ""
        await reflector._list()
        assert sum(listener.requests("list", "jobs").values()) == lists + 1


# --- a server that starts anew ------------------------------------------------------------------


async def test_adoption_settles_what_happened_meanwhile(
    kubectl: Kubectl, kubelet: FakeKubelet
) -> None:
    async with Listener(options_for(kubectl)) as listener:
        running, failed, gone, orphan = [await listener.start() for _ in range(4)]
        pods = [await pod_of(kubectl, ref) for ref in (running, failed)]
        for pod in pods:
            await kubelet.run(pod)
            await listener.hear(running, lambda said: said.state is LaunchState.PLACED)
    await kubelet.fail(pods[1], exitCode=137, reason="OOMKilled")
    kubectl("delete", "job", job_name(gone))
    never = LaunchRef("0" * 26, 1, "")
    async with Listener(options_for(kubectl)) as listener:
        await listener.executor.adopt([running, failed, gone, never])
        placed = await listener.hear(running, lambda said: said.state is LaunchState.PLACED)
        assert await listener.executor.holds(running, placed.instance_id)
        ended = await listener.end(failed)
        assert ended.end is LaunchEnd.OUT_OF_MEMORY
        assert dict(ended.metadata) == {"limit_bytes": str(64 * MIB)}
        assert (await listener.end(gone)).end is LaunchEnd.DELETED
        assert (await listener.executor.status(never)).state is LaunchState.UNKNOWN
        assert listener.said(never) == []
        await _until_gone(kubectl, "job", job_name(orphan))
        assert kubectl.get("job", job_name(running))


async def test_jobs_of_another_server_are_left_alone(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl, instance="one")) as listener:
        ref = await listener.start()
    async with Listener(options_for(kubectl, instance="two")) as listener:
        await listener.executor.adopt([])
        await asyncio.sleep(1)
    assert "deletionTimestamp" not in kubectl.get("job", job_name(ref))["metadata"]


async def test_two_hundred_launches_are_adopted_at_once(kubectl: Kubectl) -> None:
    async with Listener(options_for(kubectl)) as listener:
        refs = [await listener.start() for _ in range(200)]
        assert sum(listener.requests("create", "secrets").values()) == 200
    async with Listener(options_for(kubectl)) as listener:
        began = asyncio.get_running_loop().time()
        await listener.executor.adopt(refs)
        for ref in refs:
            await listener.hear(ref, lambda said: said.state is LaunchState.WAITING)
        assert asyncio.get_running_loop().time() - began < 5


async def _insist(listener: Listener, request: LaunchRequest) -> str:
    async with asyncio.timeout(40):
        while True:
            try:
                return await listener.executor.launch(request)
            except LaunchDelayed:
                await asyncio.sleep(0.2)


async def _until_gone(kubectl: Kubectl, kind: str, name: str = "") -> None:
    async def there() -> bool:
        found = await asyncio.to_thread(kubectl.list, kind)
        return any(name in ("", item["metadata"]["name"]) for item in found)

    async with asyncio.timeout(30):
        while await there():
            await asyncio.sleep(0.1)


def _is_leaving(item: Json) -> bool:
    return "deletionTimestamp" in item["metadata"]


def _is_established(item: Json) -> bool:
    conditions = item.get("status", {}).get("conditions", ())
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def _quota(hard: dict[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": hard},
    }


@contextmanager
def _policy(kubectl: Kubectl, resource: str, message: str) -> Iterator[None]:
    """Refuse a resource in the namespace of the test."""
    name = f"refuse-{resource}-{kubectl.namespace}"
    group = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["batch" if resource == "jobs" else ""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": [resource],
    }
    here = {"matchLabels": {"kubernetes.io/metadata.name": kubectl.namespace}}
    caller = Kubectl(kubectl.kubeconfig)
    caller.apply(
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule]},
                "validations": [{"expression": "false", "message": message}],
            },
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": here},
            },
        },
    )
    # The server takes a moment to heed it.
    time.sleep(3)
    try:
        yield
    finally:
        caller("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", name)


# What deploy/helm grants the server.
RULES = [
    {
        "apiGroups": ["batch"],
        "resources": ["jobs"],
        "verbs": ["create", "get", "list", "watch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "watch"]},
]

# The part of Kueue's that is read.
_WORKLOADS: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"plural": "workloads", "singular": "workload", "kind": "Workload"},
        "versions": [
            {
                "name": "v1beta2",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
