"""``python -m tests.support.cluster``: prepares this machine for the tests that need a cluster.

Builds the programs once and, as root, installs what a node needs. Says what cannot be tested here.
"""

import shutil
import subprocess

from tests.support.cluster import build
from tests.support.cluster.clusters import VARIABLE, foreign_kubeconfig
from tests.support.cluster.node import NEEDS_ROOT, PACKAGES, missing


def main() -> None:
    try:
        build.main([])
    except build.GoMissing as error:
        print(f"Skipping every test that needs a cluster: {error}.")
        return
    if foreign_kubeconfig():
        print(
            f"Using the cluster of {VARIABLE}: skipping tests that kill its parts or need a node."
        )
        return
    if missing() not in ("", NEEDS_ROOT):
        _install()
    if reason := missing():
        print(f"Skipping tests that run pods: {reason}.")


def _install() -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        return
    print(f"installing {' '.join(PACKAGES)}", flush=True)
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run([apt, "-qq", *arguments], check=True)


if __name__ == "__main__":
    main()
