"""What a worker arranges for itself where no executor on the machine does it, as in a pod.

Before any library is loaded: they read these variables once.
"""

import os
import tempfile
from pathlib import Path

from lighten_service.worker.machine import cpus

_XDG = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
}


def move_in(scratch: Path) -> None:
    """Send everything that libraries keep below ``scratch``, and fit their threads to the CPUs.

    ``OMP_NUM_THREADS`` and ``OMP_WAIT_POLICY`` stay where the operator has set them.

    Raises:
        OSError: the folder cannot be written.
    """
    home, temporary = scratch / "home", scratch / "tmp"
    for folder in (home, temporary):
        folder.mkdir(exist_ok=True)
    os.environ.update({"HOME": str(home), "TMPDIR": str(temporary)})
    os.environ.update({name: str(home / folder) for name, folder in _XDG.items()})
    tempfile.tempdir = None  # asked for again
    # Who runs in a container need not be in its list of users, which libraries look at.
    os.environ.setdefault("USER", "lighten")
    os.environ.setdefault("OMP_NUM_THREADS", str(cpus()))
    # Threads that spin at a barrier use up the CPU time of those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
