"""What tests ask of a cluster, through the real ``kubectl``: it knows every way to authenticate."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.cluster.build import program

Json = dict[str, Any]
_REQUEST_SECONDS = 60.0


class KubectlError(RuntimeError):
    """kubectl said no; the message is what it wrote."""


class Kubectl:
    """A caller of one cluster, in the namespace that its kubeconfig names."""

    def __init__(self, kubeconfig: Path, namespace: str = "") -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def within(self, namespace: str) -> "Kubectl":
        """Return the same caller in another namespace."""
        return Kubectl(self.kubeconfig, namespace)

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl and return its output. Raises KubectlError."""
        command = [str(program("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        if self.namespace:
            command.append(f"--namespace={self.namespace}")
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_REQUEST_SECONDS
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, kind: str, name: str) -> Json:
        """Return one object."""
        found: Json = json.loads(self("get", kind, name, "--output=json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[Json]:
        """Return the objects of a kind in the namespace."""
        found = self("get", kind, f"--selector={selector}", "--output=json")
        items: list[Json] = json.loads(found)["items"]
        return items

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects, as the server sees them (server-side apply)."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "--filename=-", stdin=json.dumps(items))

    def patch(self, kind: str, name: str, change: Mapping[str, Any], subresource: str = "") -> None:
        """Merge a change into an object; lists are replaced."""
        which = [f"--subresource={subresource}"] if subresource else []
        self("patch", kind, name, "--type=merge", f"--patch={json.dumps(change)}", *which)

    def evict(self, pod: str) -> None:
        """Ask for a pod's eviction by the API, as ``kubectl drain`` does."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        caller = Kubectl(self.kubeconfig)
        caller("create", f"--raw={path}", "--filename=-", stdin=json.dumps(body))

    def until(
        self, kind: str, name: str, ready: Callable[[Json], bool], seconds: float = 60.0
    ) -> Json:
        """Wait until an object is there and a test of it holds; return it.

        Raises:
            TimeoutError: with the object as it was last.
        """
        deadline = time.monotonic() + seconds
        found: Json = {}
        while time.monotonic() < deadline:
            try:
                found = self.get(kind, name)
            except KubectlError as error:
                found = {"error": str(error)}
            else:
                if ready(found):
                    return found
            time.sleep(0.3)
        raise TimeoutError(f"{kind} {name} after {seconds:.0f} s: {json.dumps(found, indent=1)}")
