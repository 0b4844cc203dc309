"""Fake nodes by kwok, for scale: pods are scheduled for real and run for ever without a process."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.cluster.build import program
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.workspace import Workspace, wait_for

_STAGES = Path(__file__).with_name("kwok.yaml")
_LABEL = "lighten.test/fake"
_GIB = 1 << 30


class FakeNodes:
    """Nodes without a machine, of one kind.

    A bound pod is Running at once and stays so; a deleted one is gone at once.

    Args:
        count: number of nodes.
        gpus: ``nvidia.com/gpu`` of each.
        memory_bytes: of each.
        cpus: of each.

    Raises:
        RuntimeError: on construction, when they do not become ready; has the end of kwok's log.
    """

    def __init__(
        self,
        plane: ControlPlane,
        count: int,
        *,
        gpus: int = 8,
        memory_bytes: int = 512 * _GIB,
        cpus: int = 64,
    ) -> None:
        self.names = [f"fake-{number}" for number in range(1, count + 1)]
        self._kubectl = Kubectl(plane.kubeconfig)
        self.workspace = Workspace("kwok")
        try:
            self._start(plane)
            amounts = {"nvidia.com/gpu": gpus, "memory": memory_bytes, "cpu": cpus, "pods": 1000}
            amounts["ephemeral-storage"] = memory_bytes
            self._make({name: str(amount) for name, amount in amounts.items()})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the nodes and stop kwok. Pods on them are left to whoever made them."""
        try:
            self._kubectl("delete", "nodes", f"--selector={_LABEL}=true", "--wait=false")
        finally:
            self.workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, plane: ControlPlane) -> None:
        self._kwok = self.workspace.daemon(
            "kwok",
            program("kwok"),
            f"--kubeconfig={plane.kubeconfig}",
            f"--config={_STAGES}",
            f"--manage-nodes-with-label-selector={_LABEL}=true",
            "--node-lease-duration-seconds=16",
        )

    def _make(self, amounts: dict[str, str]) -> None:
        self._kubectl.apply(*(_node(name, amounts) for name in self.names))
        wait_for(self._ready, self._kwok)

    def _ready(self) -> bool:
        nodes = self._kubectl.list("nodes", f"{_LABEL}=true")
        return sum(map(_is_ready, nodes)) == len(self.names)


def _node(name: str, amounts: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {_LABEL: "true", "kubernetes.io/hostname": name}},
        "status": {"capacity": amounts, "allocatable": amounts},
    }


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
