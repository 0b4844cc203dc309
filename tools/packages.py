"""Packages that are unpacked for the files they ship, and never imported."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def unpack(
    lock: Path, folder: Path, announce: Callable[[], None], options: Sequence[str] = ()
) -> Path:
    """Unpack the packages of a lock file into a folder, unless they are there, and return it.

    ``announce`` is called before anything is downloaded; ``options`` are those of `uv pip install`.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    stamp = folder / ".lock-sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        announce()
        uv = Path(sys.executable).with_name("uv")
        command = [uv, "--no-config", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, *options, "--target", folder, "-r", lock], check=True)
        stamp.write_text(digest)
    return folder
