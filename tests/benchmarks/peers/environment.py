"""The environment that the peers live in, apart from Lighten's."""

import hashlib
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[3] / "requirements" / "peers.txt"


def python(folder: Path) -> Path:
    """Return the interpreter of the peers' environment, made anew when the lock has changed.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    interpreter, stamp = folder / "bin" / "python", folder / ".lock-sha256"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        print("installing the peers from PyPI (200 MB, once)", flush=True)
        uv = [Path(sys.executable).with_name("uv"), "--no-config"]
        create = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder]
        subprocess.run(create, check=True)
        sync = [*uv, "pip", "sync", "--quiet", "--require-hashes", "--python", interpreter, LOCK]
        subprocess.run(sync, check=True)
        stamp.write_text(digest)
    return interpreter
