"""ARM, with and without instructions for dot products, which choose the kernels."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.emulation.cpu import Cpu, Facts
from tests.support.emulation.debian import unpack
from tests.support.emulation.once import made_once
from tests.support.emulation.qemu import qemu
from tools.packages import unpack as install

_LOCK = Path(__file__).parents[3] / "requirements" / "arm.txt"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# Of the system that is unpacked; the rest are scripts and states of packages.
_SHARED = ("usr", "lib")


@dataclass(frozen=True, slots=True)
class _Model:
    """A processor, as qemu calls it and as Linux describes it."""

    name: str
    features: str
    part: int
    variant: int
    revision: int

    @property
    def identification(self) -> int:
        """MIDR_EL1: implementer, variant, architecture, part, revision."""
        return 0x41 << 24 | self.variant << 20 | 0xF << 16 | self.part << 4 | self.revision


_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_WITHOUT = _Model("cortex-a53", _BASE, part=0xD03, variant=0, revision=4)
_WITH = _Model(
    "neoverse-n1",
    f"{_BASE} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs",
    part=0xD0C,
    variant=3,
    revision=1,
)


def arm(cache: Path, *, dot_product: bool) -> Cpu:
    """Return an emulated ARM, downloading a small system for it (62 MB) where that is missing.

    Raises:
        debian.Unavailable: packages for ARM cannot be had.
    """
    model = _WITH if dot_product else _WITHOUT
    digest = hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12]
    system = made_once(cache / f"arm-{digest}", _fetch)
    root = system / model.name
    python = next((root / "usr" / "bin").glob("python3.??"))
    return Cpu(
        f"ARM by qemu ({model.name})",
        Facts("aarch64", dot_product),
        (str(qemu(cache, "qemu-aarch64")), "-cpu", model.name, "-L", str(root)),
        # Without the packages of a site, which are not there.
        (str(python), "-S"),
        {"PYTHONPATH": str(system / "packages")},
    )


def _fetch(folder: Path) -> None:
    shared, packages = folder / "shared", folder / "packages"
    shared.mkdir()
    unpack(_PACKAGES, "arm64", shared)
    # Newer distributions have all libraries in one place, and this link from another package.
    if not (shared / "lib").exists():
        (shared / "lib").symlink_to("usr/lib")
    python = next((shared / "usr" / "bin").glob("python3.??")).name
    version = python.removeprefix("python")
    platform = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", version]
    install(_LOCK, packages, lambda: None, [*platform, "--only-binary", ":all:"])
    for model in (_WITHOUT, _WITH):
        for name, content in _files(model).items():
            path = folder / model.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        for name in _SHARED:
            (folder / model.name / name).symlink_to(f"../shared/{name}")


def _files(model: _Model) -> Mapping[str, str]:
    """Return what ONNX Runtime reads of the kernel, which would be this machine's: one core."""
    lines = {
        "processor": "0",
        "BogoMIPS": "50.00",
        "Features": model.features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": f"{model.variant:#x}",
        "CPU part": f"{model.part:#x}",
        "CPU revision": f"{model.revision}",
    }
    cpu = "sys/devices/system/cpu"
    return {
        "proc/cpuinfo": "\n".join(f"{key}\t: {value}" for key, value in lines.items()),
        **dict.fromkeys([f"{cpu}/{name}" for name in ("possible", "present", "online")], "0"),
        f"{cpu}/kernel_max": "255",
        f"{cpu}/cpu0/topology/core_id": "0",
        f"{cpu}/cpu0/topology/physical_package_id": "0",
        f"{cpu}/cpu0/regs/identification/midr_el1": f"{model.identification:#018x}",
    }
