"""qemu's emulators of single programs, linked statically: nothing of theirs reaches a guest."""

import shutil
from pathlib import Path

from tests.support.emulation.debian import unpack
from tests.support.emulation.once import made_once

# Those of CPUs that tests ask for; the package has three dozen more.
_PROGRAMS = ("qemu-x86_64", "qemu-aarch64")


def qemu(cache: Path, program: str) -> Path:
    """Return the emulator of this name, downloading it (63 MB) where it is missing.

    Raises:
        debian.Unavailable: there is none for this machine.
    """
    return made_once(cache / "qemu", _fetch) / program


def _fetch(folder: Path) -> None:
    everything = folder / "everything"
    everything.mkdir()
    unpack(["qemu-user-static"], "amd64", everything)
    for program in _PROGRAMS:
        # Newer distributions link all of them so, and give the plain name to them.
        names = [everything / "usr" / "bin" / f"{program}{suffix}" for suffix in ("", "-static")]
        shutil.move(next(path for path in names if path.is_file()), folder / program)
    shutil.rmtree(everything)
