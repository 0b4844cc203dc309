"""A real node on this machine: containerd and kubelet. Needs root, runc and the CNI plugins.

containerd and kubelet share a mount namespace of their own with empty folders where they insist on
fixed paths, so that they meet neither a node that the machine may be nor each other.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.cluster.build import program
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.images import write_image
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.workspace import Daemon, Workspace, free_port, wait_for

# An empty image: what runs in it is mounted from this machine.
EMPTY_IMAGE = "lighten.test/empty:1"
GPUS = 2
NEEDS_ROOT = "a node needs root"
# What Debian calls it.
PACKAGES = ("runc", "containernetworking-plugins", "util-linux")
_PAUSE_IMAGE = "lighten.test/pause:1"
_PLUGINS = Path("/usr/lib/cni")
_OWN_FOLDERS = ("/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet")


def missing() -> str:
    """Return what this machine lacks to be a node; empty when it can be one."""
    if os.geteuid() != 0:
        return NEEDS_ROOT
    lacks = [name for name in ("runc", "unshare", "nsenter") if shutil.which(name) is None]
    if not _PLUGINS.is_dir():
        lacks.append("the CNI plugins")
    return f"a node needs {', '.join(lacks)} (Debian: {' '.join(PACKAGES)})" if lacks else ""


class Node:
    """One node of a control plane. Its kubelet can be killed and started again; pods carry on.

    Args:
        plane: a control plane that expects a node of this name.
        gpus: ``nvidia.com/gpu`` to schedule by. Pods get no device.

    Raises:
        RuntimeError: on construction; a part did not start; has the end of its log.
    """

    def __init__(self, plane: ControlPlane, name: str = "node-1", gpus: int = GPUS) -> None:
        self.name = name
        self.gpus = gpus
        self._plane = plane
        self._kubectl = Kubectl(plane.kubeconfig)
        self.workspace = Workspace(name)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    def kill_kubelet(self) -> None:
        """Kill -9: the node is lost after a while, its containers run on."""
        self.kubelet.kill()

    def start_kubelet(self) -> None:
        """Start it again, and wait until the node is ready and has its GPUs."""
        self.kubelet.start()
        self._await_ready()

    def load_image(self, archive: Path) -> None:
        """Take an image from an OCI or Docker archive."""
        command = [program("ctr"), f"--address={self._socket}", "--namespace=k8s.io"]
        subprocess.run([*command, "images", "import", archive], check=True, capture_output=True)

    def close(self) -> None:
        """Remove the node and everything that ran on it."""
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

    @property
    def _socket(self) -> Path:
        return self.folder / "containerd.sock"

    def _start(self) -> None:
        self._namespace = self._start_namespace()
        self._make_cgroups()
        self._write_network()
        self.containerd = self._start_containerd()
        wait_for(self._socket.exists, self.containerd)
        self._load_images()
        self.kubelet = self._start_kubelet()
        self._await_ready()

    def _start_namespace(self) -> Daemon:
        for folder in _OWN_FOLDERS:
            Path(folder).mkdir(parents=True, exist_ok=True)
        mounts = "".join(f"mount -t tmpfs tmpfs {folder} && " for folder in _OWN_FOLDERS)
        ready = self.folder / "namespace"
        script = f"{mounts} touch {ready} && exec sleep infinity"
        holder = self.workspace.daemon(
            "namespace", "unshare", "--mount", "--propagation=private", "sh", "-c", script
        )
        wait_for(ready.exists, holder)
        return holder

    def _daemon(self, name: str, *command: str | Path, env: Mapping[str, str]) -> Daemon:
        """Start a program in the node's mount namespace."""
        enter = f"--mount=/proc/{self._namespace.pid}/ns/mnt"
        return self.workspace.daemon(name, "nsenter", enter, *command, env=env)

    def _make_cgroups(self) -> None:
        """Make the cgroup that all containers lie below, which the guard removes."""
        root = Path("/sys/fs/cgroup")
        if (root / "cgroup.controllers").exists():  # cgroup v2
            (root / self.folder.name).mkdir()
            return
        for tasks in root.glob("*/tasks"):
            (tasks.parent / self.folder.name).mkdir(exist_ok=True)

    def _write_network(self) -> None:
        """Give pods without ``hostNetwork`` an address; they reach this machine alone."""
        ranges = {"type": "host-local", "subnet": "10.87.0.0/24", "dataDir": "/run/cni-addresses"}
        plugins = [{"type": "ptp", "ipam": ranges}]
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-test.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": plugins})
        )

    def _start_containerd(self) -> Daemon:
        config = self.folder / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(folder=self.folder, plugins=_PLUGINS, pause=_PAUSE_IMAGE)
        )
        path = f"{program('containerd').parent}:{os.environ['PATH']}"
        command = (program("containerd"), f"--config={config}")
        return self._daemon("containerd", *command, env={"PATH": path})

    def _load_images(self) -> None:
        archive = self.folder / "image.tar"
        write_image(archive, _PAUSE_IMAGE, {"pause": program("pause")}, "/pause")
        self.load_image(archive)
        write_image(archive, EMPTY_IMAGE, {})
        self.load_image(archive)

    def _start_kubelet(self) -> Daemon:
        config = self.folder / "kubelet.json"
        config.write_text(json.dumps(self._kubelet_config()))
        return self._daemon(
            "kubelet",
            program("kubelet"),
            f"--config={config}",
            f"--kubeconfig={self._plane.kubeconfig_of(f'system:node:{self.name}')}",
            f"--hostname-override={self.name}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'certs'}",
            env={},
        )

    def _kubelet_config(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "port": free_port(""),
            "healthzPort": 0,
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self._plane.kubelet_ca)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.folder.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "resolvConf": "/dev/null",
            # Within the control plane's NODE_GRACE_SECONDS.
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 8,
            # Pods over their scratch space are looked for this often; usually once a minute.
            "volumeStatsAggPeriod": "5s",
            # A full disk of the machine is no reason to evict the tests' pods.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "enforceNodeAllocatable": ["pods"],
        }

    def _await_ready(self) -> None:
        wait_for(self._ready, self.kubelet)
        capacity = {"status": {"capacity": {"nvidia.com/gpu": str(self.gpus)}}}
        self._kubectl.patch("node", self.name, capacity, subresource="status")
        wait_for(self._has_gpus, self.kubelet)

    def _ready(self) -> bool:
        nodes = {node["metadata"]["name"]: node for node in self._kubectl.list("nodes")}
        conditions = nodes.get(self.name, {}).get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _has_gpus(self) -> bool:
        status = self._kubectl.get("node", self.name)["status"]
        return bool(status["allocatable"].get("nvidia.com/gpu") == str(self.gpus))


_CONTAINERD = """
version = 4
root = '{folder}/containerd'
state = '{folder}/containerd-state'
[plugins.'io.containerd.server.v1.grpc']
  address = '{folder}/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '{folder}/containerd.sock.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
  path = '{folder}/opt'
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
  # Otherwise every sandbox dies where the score may not be lowered.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{plugins}']
  conf_dir = '{folder}/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""
