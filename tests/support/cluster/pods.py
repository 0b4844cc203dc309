"""The operator's pod template of the tests: workers run the programs of this machine."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parents[3]
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin")


def machine_template(command: Sequence[str] = (), shared: Path | None = None) -> dict[str, Any]:
    """Return a template whose pods see this machine's system, Python and repository, read-only.

    Their image may be empty (``node.EMPTY_IMAGE``). They share the machine's network, so that
    servers on loopback are reached.

    Args:
        command: of the container ``worker``; by default what the executor's settings say.
        shared: a folder that pods may also write to.
    """
    folders = [path for path in _folders() if path.exists()]
    volumes = [_volume(f"machine-{number}", path) for number, path in enumerate(folders)]
    mounts = [
        {"name": volume["name"], "mountPath": str(path), "readOnly": True}
        for volume, path in zip(volumes, folders, strict=True)
    ]
    if shared is not None:
        shared.chmod(0o777)
        volumes.append(_volume("shared", shared))
        mounts.append({"name": "shared", "mountPath": str(shared)})
    worker: dict[str, Any] = {"name": "worker", "volumeMounts": mounts}
    if command:
        worker["command"] = list(command)
    return {"spec": {"hostNetwork": True, "containers": [worker], "volumes": volumes}}


def _folders() -> list[Path]:
    """Return what a worker needs, without folders that lie in another one of them."""
    wanted = [*_SYSTEM, sys.base_prefix, sys.prefix, _REPOSITORY]
    paths = sorted({Path(path) for path in wanted})
    return [path for path in paths if not any(parent in paths for parent in path.parents)]


def _volume(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": str(path)}}
