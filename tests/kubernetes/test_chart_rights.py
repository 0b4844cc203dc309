"""The chart's Role holds what the executor uses, and nothing else."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lighten_service.jobs.ports import LaunchEnd, LaunchState
from tests.support.chart import RELEASE, find, render
from tests.support.cluster.access import account_kubeconfig
from tests.support.cluster.clusters import Cluster
from tests.support.cluster.kubectl import Kubectl, KubectlError
from tests.support.cluster_executor import FakeKubelet, Listener, job_name, options_for, pod_of

pytestmark = pytest.mark.kubernetes

QUEUE = "lighten"
# Kueue's objects, as far as the executor reads them.
WORKLOADS: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        # The group is Kubernetes' own.
        "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Workload", "plural": "workloads", "singular": "workload"},
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
Rights = set[tuple[str, str]]


@pytest.fixture
def workloads(kubectl: Kubectl) -> Iterator[None]:
    kubectl.apply(WORKLOADS)
    name = WORKLOADS["metadata"]["name"]
    # Once it can be listed it can be watched.
    for _ in range(100):
        with suppress(KubectlError):
            kubectl("get", name)
            break
        time.sleep(0.2)
    yield
    kubectl("delete", "crd", name)


def granted(role: dict[str, Any]) -> Rights:
    return {
        (verb, resource)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(listener: Listener) -> Rights:
    """Return what was asked of the API. Every account may discover its groups."""
    asked = {
        (sample.labels["verb"], sample.labels["resource"])
        for metric in listener.registry.collect()
        for sample in metric.samples
        if sample.name == "lighten_kubernetes_requests_total"
    }
    for right in asked:
        assert "403" not in listener.requests(*right), right
    return asked - {("get", "apigroups")}


async def launch_and_stop(listener: Listener, kubectl: Kubectl) -> None:
    """Use everything of a launch's life: found again, unsuspended, running, stopped in a hurry."""
    kubelet = FakeKubelet(kubectl)
    request = listener.request()
    ref = await listener.start(request)
    assert await listener.executor.launch(request) == ref.handle
    if listener.options.queue:
        kubectl.patch("job", job_name(ref), {"spec": {"suspend": False}})
    pod = await pod_of(kubectl, ref)
    await kubelet.run(pod)
    await listener.hear(ref, lambda said: said.state is LaunchState.PLACED)
    await listener.executor.stop(ref, grace_seconds=1)
    await listener.hear(ref, lambda said: said.state is not LaunchState.PLACED)
    await kubelet.remove(pod)
    assert (await listener.end(ref)).end is LaunchEnd.STOPPED


async def check_rights(cluster: Cluster, kubectl: Kubectl, values: dict[str, Any]) -> None:
    objects = render(values={"insecure": True, **values}, namespace=kubectl.namespace)
    role = find(objects, "Role")
    account = next(
        each
        for each in objects
        if each["kind"] == "ServiceAccount" and each["metadata"]["name"] == RELEASE
    )
    kubectl.apply(account, role, find(objects, "RoleBinding"))
    # The strictest of Kubernetes' own standards lets workers in.
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    kubectl("label", "namespace", kubectl.namespace, enforce)
    options = options_for(
        kubectl,
        kubeconfig=account_kubeconfig(kubectl, RELEASE, cluster.folder),
        queue=QUEUE if values else "",
    )
    async with Listener(options) as listener:
        await launch_and_stop(listener, kubectl)
        assert used(listener) == granted(role)


async def test_role_is_what_the_executor_uses(cluster: Cluster, kubectl: Kubectl) -> None:
    await check_rights(cluster, kubectl, {})


async def test_role_with_kueue_is_what_the_executor_uses(
    cluster: Cluster, kubectl: Kubectl, workloads: None
) -> None:
    await check_rights(cluster, kubectl, {"kueue": {"enabled": True, "queue": QUEUE}})


def test_worker_account_may_do_nothing(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    objects = render(values={"insecure": True}, namespace=kubectl.namespace)
    account = find(objects, "ServiceAccount", "-worker")
    kubectl.apply(account)
    worker = Kubectl(
        account_kubeconfig(kubectl, account["metadata"]["name"], tmp_path), kubectl.namespace
    )
    assert account["automountServiceAccountToken"] is False
    for verb, resource in (("get", "secrets"), ("list", "pods"), ("create", "jobs")):
        with pytest.raises(KubectlError):
            worker("auth", "can-i", verb, resource)
