"""Kubeconfigs: the administrator's, and those of service accounts with few rights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.cluster.kubectl import Kubectl, KubectlError


def write_kubeconfig(
    path: Path, *, server: str, ca: Path | str, token: str, namespace: str = "default"
) -> Path:
    """Write a kubeconfig with one user. ``ca``: a file, or what it says in base 64."""
    authority = (
        {"certificate-authority": str(ca)}
        if isinstance(ca, Path)
        else {"certificate-authority-data": ca}
    )
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, **authority}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [
            {
                "name": "test",
                "context": {"cluster": "test", "user": "test", "namespace": namespace},
            }
        ],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path


def make_namespace(kubectl: Kubectl, name: str) -> None:
    """Make a namespace in which pods can start."""
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    kubectl.within(name).until("serviceaccount", "default", lambda _: True)


def make_account(
    kubectl: Kubectl, namespace: str, name: str, rules: Sequence[dict[str, Any]], folder: Path
) -> Path:
    """Make a service account (and its namespace) and return a kubeconfig limited to it.

    Args:
        kubectl: an administrator.
        rules: RBAC rules in the namespace: ``{"apiGroups", "resources", "verbs"}``.
        folder: takes the kubeconfig.
    """
    caller = kubectl.within(namespace)
    try:
        kubectl.get("namespace", namespace)
    except KubectlError:
        make_namespace(kubectl, namespace)
    here = {"name": name, "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    caller.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": here, "rules": list(rules)},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": here,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", **here}],
        },
    )
    return account_kubeconfig(caller, name, folder)


def account_kubeconfig(kubectl: Kubectl, name: str, folder: Path) -> Path:
    """Return a new kubeconfig of a service account in the caller's namespace, good for a day."""
    namespace = kubectl.namespace
    token = kubectl("create", "token", name, "--duration=24h").strip()
    view = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
    cluster = view["clusters"][0]["cluster"]
    return write_kubeconfig(
        folder / f"{namespace}-{name}.kubeconfig",
        server=cluster["server"],
        ca=cluster["certificate-authority-data"],
        token=token,
        namespace=namespace,
    )
