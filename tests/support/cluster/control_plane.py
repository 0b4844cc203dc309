"""etcd, API server, controller manager and scheduler on loopback: no root, ready in seconds."""

import secrets
import ssl
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.cluster.access import write_kubeconfig
from tests.support.cluster.build import program
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster.workspace import Daemon, Workspace, free_port, wait_for

_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
# Users whose tokens the API server knows, with their groups.
_USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
# Seconds of silence after which a node is lost: Kubernetes waits 50.
NODE_GRACE_SECONDS = 12
# Thousands of Jobs at once, without the clients' own brakes.
_FAST = ("--kube-api-qps=500", "--kube-api-burst=1000")


class ControlPlane:
    """A Kubernetes without nodes. Its parts can be killed and started again on the same ports.

    Args:
        nodes: names under which kubelets will come.

    Raises:
        GoMissing: on construction, when its programs are neither built nor can be.
        RuntimeError: a part did not start; has the end of its log.
    """

    def __init__(self, nodes: tuple[str, ...] = ("node-1",)) -> None:
        self._programs = {name: program(name) for name in _PROGRAMS}
        self.workspace = Workspace("cluster")
        try:
            self._start(nodes)
        except BaseException:
            self.workspace.close()
            raise

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.kubeconfig_of("admin")

    @property
    def ca(self) -> Path:
        """What the API server's certificate is checked with."""
        return self.folder / "certs" / "apiserver.crt"

    @property
    def kubelet_ca(self) -> Path:
        """What a kubelet checks the API server with."""
        return self.folder / "kubelet-client.crt"

    def kubeconfig_of(self, user: str) -> Path:
        return self.folder / f"{user.replace(':', '-')}.kubeconfig"

    def kill_api_server(self) -> None:
        """Kill -9: clients are refused until ``start_api_server``."""
        self.api_server.kill()

    def start_api_server(self) -> None:
        """Start it again where it was, and wait until it is ready."""
        self.api_server.start()
        wait_for(self._ready, self.api_server)

    def restart(self) -> None:
        """Kill every part with -9 and start it again, as after a power cut."""
        parts = (self.scheduler, self.controller_manager, self.api_server, self.etcd)
        for part in parts:
            part.kill()
        self.etcd.start()
        self.start_api_server()
        self.controller_manager.start()
        self.scheduler.start()

    def close(self) -> None:
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

    def _start(self, nodes: tuple[str, ...]) -> None:
        self._port = free_port()
        self._write_keys()
        self._write_users({**_USERS, **{f"system:node:{node}": "system:nodes" for node in nodes}})
        client = f"http://127.0.0.1:{free_port()}"
        self.etcd = self._start_etcd(client)
        self.api_server = self._start_api_server(client)
        wait_for(self._ready, self.api_server)
        self.controller_manager = self._start_controller_manager()
        self.scheduler = self._start_scheduler()
        default = Kubectl(self.kubeconfig, "default")
        default.until("serviceaccount", "default", lambda _: True)

    def _write_keys(self) -> None:
        """Make the key of service accounts' tokens, and what the API server shows to kubelets."""
        openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7"]
        for name in ("service-accounts", "kubelet-client"):
            target = self.folder / name
            files = ["-keyout", f"{target}.key", "-out", f"{target}.crt"]
            subprocess.run(
                [*openssl, "-subj", f"/CN={name}", *files], capture_output=True, check=True
            )

    def _write_users(self, users: dict[str, str]) -> None:
        lines = []
        for user, groups in users.items():
            token = secrets.token_hex(16)
            lines.append(f'{token},{user},{user},"{groups}"\n')
            write_kubeconfig(self.kubeconfig_of(user), server=self.url, ca=self.ca, token=token)
        (self.folder / "tokens.csv").write_text("".join(lines))

    def _start_etcd(self, client: str) -> Daemon:
        peer = f"http://127.0.0.1:{free_port()}"
        return self.workspace.daemon(
            "etcd",
            self._programs["etcd"],
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=error",
            "--unsafe-no-fsync",
        )

    def _start_api_server(self, etcd: str) -> Daemon:
        return self.workspace.daemon(
            "kube-apiserver",
            self._programs["kube-apiserver"],
            f"--etcd-servers={etcd}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--cert-dir={self.folder / 'certs'}",
            f"--service-account-key-file={self.folder / 'service-accounts.key'}",
            f"--service-account-signing-key-file={self.folder / 'service-accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={self.kubelet_ca}",
            f"--kubelet-client-key={self.folder / 'kubelet-client.key'}",
        )

    def _start_controller_manager(self) -> Daemon:
        return self.workspace.daemon(
            "kube-controller-manager",
            self._programs["kube-controller-manager"],
            f"--kubeconfig={self.kubeconfig_of('system:kube-controller-manager')}",
            f"--service-account-private-key-file={self.folder / 'service-accounts.key'}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
            *_FAST,
        )

    def _start_scheduler(self) -> Daemon:
        return self.workspace.daemon(
            "kube-scheduler",
            self._programs["kube-scheduler"],
            f"--kubeconfig={self.kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            *_FAST,
        )

    def _ready(self) -> bool:
        try:
            trust = ssl.create_default_context(cafile=str(self.ca))
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2, context=trust) as answer:
                return answer.status == 200
        except OSError:  # no certificate yet, no listener, or not ready
            return False
