"""``lighten-server`` whose workers start behind another command, an emulator say.

``LIGHTEN_TEST_WORKER_PREFIX`` is that command, as a JSON list.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from lighten_service import executor_setup
from lighten_service.executors.local import LocalOptions
from lighten_service.server import main

VARIABLE = "LIGHTEN_TEST_WORKER_PREFIX"
# An emulator makes up its own start time, by which the executor knows its workers.
_NAMED = """
stat=$(cat /proc/$$/stat); set_start() { shift 19; start=$1; }; set_start ${stat##*) }
LIGHTEN_INSTANCE_ID=$(cat /proc/sys/kernel/random/boot_id):$$:$start exec "$@"
"""


def _prefixed(folder: Path) -> None:
    script = folder / "named.sh"
    script.write_text(_NAMED)
    prefix: list[str] = json.loads(os.environ[VARIABLE])
    command = ("sh", str(script), *prefix, *LocalOptions.__dataclass_fields__["command"].default)
    executor_setup.LocalOptions = partial(  # type: ignore[misc,assignment]
        LocalOptions, command=command
    )


if __name__ == "__main__":
    _prefixed(Path(os.environ["LIGHTEN_DATA_DIR"]))
    sys.exit(main())
