"""The programs of the test cluster, built once from pinned Go modules.

``python -m tests.support.cluster.build [MODULE...]`` builds all of them, or some. They lie in
``.cache/cluster`` of the repository, or in ``$LIGHTEN_CLUSTER_CACHE``.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_SOURCES = Path(__file__).with_name("go")
_CACHE = Path(__file__).parents[3] / ".cache" / "cluster"
_USUAL_GO = Path("/usr/local/go/bin/go")


class GoMissing(RuntimeError):
    """Nothing can be built: there is no Go on PATH nor in its usual place."""


@dataclass(frozen=True)
class Module:
    """A Go module below ``go/`` and the commands that are built of it.

    Args:
        name: its folder.
        commands: import paths; the last part is the program's name.
        tags: build tags.
        version_flags: linker flags; ``{version}``, ``{major}`` and ``{minor}`` are those of the
            module that it requires first.
    """

    name: str
    commands: tuple[str, ...]
    tags: str = ""
    version_flags: str = ""

    @property
    def sources(self) -> Path:
        return _SOURCES / self.name

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(self.name if path == "." else path.split("/")[-1] for path in self.commands)

    @cached_property
    def version(self) -> str:
        """``v1.36.3``; empty for a module of our own."""
        found = re.search(r"^require \S+ (v\S+)", (self.sources / "go.mod").read_text(), re.M)
        return found[1] if found else ""

    @cached_property
    def folder(self) -> Path:
        """Where its programs lie: another version or flag means another folder."""
        digest = hashlib.sha256(repr(self).encode())
        for source in sorted(self.sources.iterdir()):
            digest.update(source.read_bytes())
        label = "-".join(filter(None, (self.name, self.version, digest.hexdigest()[:12])))
        return cache() / label

    @property
    def built(self) -> bool:
        return self.folder.is_dir()

    @property
    def ldflags(self) -> str:
        major, minor = [*self.version.removeprefix("v").split("."), "", ""][:2]
        given = self.version_flags.format(version=self.version, major=major, minor=minor)
        return f"-s -w {given}".strip()


_KUBERNETES = "k8s.io/component-base/version"
_CONTAINERD = "github.com/containerd/containerd/v2"

MODULES = (
    Module(
        "kubernetes",
        tuple(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            )
        ),
        # Without them clients misjudge what the server can do.
        version_flags=f"-X {_KUBERNETES}.gitVersion={{version}} -X {_KUBERNETES}.gitMajor={{major}}"
        f" -X {_KUBERNETES}.gitMinor={{minor}}",
    ),
    Module("etcd", (".",)),
    Module(
        "containerd",
        tuple(
            f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        tags="no_btrfs no_devmapper no_zfs",
        version_flags=f"-X {_CONTAINERD}/version.Version={{version}}",
    ),
    Module("pause", (".",)),
    Module(
        "kwok",
        ("sigs.k8s.io/kwok/cmd/kwok",),
        version_flags="-X sigs.k8s.io/kwok/pkg/consts.Version={version}",
    ),
    Module(
        "helm",
        ("helm.sh/helm/v4/cmd/helm",),
        version_flags="-X helm.sh/helm/v4/internal/version.version={version}",
    ),
    Module("promtool", ("github.com/prometheus/prometheus/cmd/promtool",), tags="remove_all_sd"),
)


def cache() -> Path:
    """Return the folder of everything that was built."""
    return Path(os.environ.get("LIGHTEN_CLUSTER_CACHE") or _CACHE)


def program(name: str) -> Path:
    """Return the path of a program, building its module when that was never done (minutes).

    Raises:
        GoMissing: it is not built and cannot be.
        subprocess.CalledProcessError: Go refused.
    """
    module = next(module for module in MODULES if name in module.programs)
    return build(module) / name


def is_built(*names: str) -> bool:
    """Whether ``program`` has these at once, without building."""
    return all(module.built for module in MODULES if set(names) & set(module.programs))


def build(module: Module) -> Path:
    """Build a module unless it is there, one process at a time, and return its folder."""
    if module.built:
        return module.folder
    go = find_go()
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f"{module.name}.lock"):
        if not module.built:
            _build(go, module)
    return module.folder


def find_go() -> str:
    """Return the ``go`` command. Raises GoMissing."""
    found = shutil.which("go") or (str(_USUAL_GO) if _USUAL_GO.exists() else None)
    if found is None:
        raise GoMissing("Go is missing: install Go 1.26 or newer to build the test cluster")
    return found


def _build(go: str, module: Module) -> None:
    """Build beside the final folder and rename it, so that it is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{module.name}-") as scratch:
        output = Path(scratch) / "bin"
        output.mkdir()
        flags = ["-trimpath", "-buildvcs=false", "-tags", module.tags, "-ldflags", module.ldflags]
        command = [go, "build", *flags, "-o", f"{output}/", *module.commands]
        subprocess.run(command, cwd=module.sources, check=True)
        output.rename(module.folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(names: list[str]) -> None:
    unknown = set(names) - {module.name for module in MODULES}
    if unknown:
        sys.exit(f"no such module: {', '.join(sorted(unknown))}")
    for module in MODULES:
        if (names and module.name not in names) or module.built:
            continue
        print(f"building {module.name} {module.version}", flush=True)
        started = time.monotonic()
        build(module)
        print(f"  took {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
