"""The cluster that tests run against: one of our own, or the one that the developer names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster.access import make_account
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl

# Names a kubeconfig whose user may make namespaces; nothing is started then.
VARIABLE = "LIGHTEN_TEST_KUBECONFIG"


@dataclass(frozen=True)
class Cluster:
    """A cluster and its administrator.

    Args:
        kubeconfig: of a user who may make namespaces and grant rights in them.
        control_plane: its processes, where they are ours to kill.
        folder: for kubeconfigs of accounts.
    """

    kubeconfig: Path
    folder: Path
    control_plane: ControlPlane | None = None

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.kubeconfig)

    def account(self, namespace: str, name: str, rules: Sequence[dict[str, Any]]) -> Path:
        """Make a service account with these rules in a namespace; return its kubeconfig."""
        return make_account(self.kubectl, namespace, name, rules, self.folder)


def foreign_kubeconfig() -> Path | None:
    """Return the developer's own kubeconfig, when one is named."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None
