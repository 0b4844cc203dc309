"""What is kept on disk of one launch, so that the next server process finds it.

``WORKERS/{job}-{launch}/``: ``launch.json`` while the launch lives, ``end.json`` once it is known
how it ends, ``worker.log`` (and ``worker.log.1``), ``scratch/`` until the end.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lighten_service.executors.local.process import ProcessId
from lighten_service.executors.local.slots import Slot
from lighten_service.jobs.ports import LaunchEnd, LaunchRef, LaunchState, LaunchStatus


@dataclass(frozen=True, slots=True)
class LaunchFile:
    """``launch.json``, and as one line the handle that the job's record keeps."""

    process: ProcessId
    slot: Slot
    scratch: str
    log: str
    memory_bytes: int
    scratch_bytes: int
    # Folder of the control group; empty where there is none.
    memory_group: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "LaunchFile":
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        fields["process"] = ProcessId(**fields["process"])
        fields["slot"] = Slot(tuple(fields["slot"]["gpus"]))
        return cls(**fields)


class LaunchFolder:
    """The files of one launch."""

    def __init__(self, workers: Path, job_id: str, launch: int) -> None:
        self.path = workers / f"{job_id}-{launch}"
        self.scratch = self.path / "scratch"
        self.log = self.path / "worker.log"
        self._launch = self.path / "launch.json"
        self._end = self.path / "end.json"

    def make(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)

    def read_launch(self) -> LaunchFile | None:
        """Return the launch while it lives, as far as the disk knows."""
        with suppress(FileNotFoundError):
            return LaunchFile.from_json(self._launch.read_text())
        return None

    def write_launch(self, launch: LaunchFile) -> None:
        _write(self._launch, launch.to_json())

    def read_end(self) -> LaunchStatus | None:
        """Return how the launch ended or will, None when that is not known."""
        with suppress(FileNotFoundError):
            fields = json.loads(self._end.read_text())
            return LaunchStatus(
                LaunchState.ENDED,
                LaunchEnd(fields["end"]),
                fields["detail"],
                tuple(sorted(fields["metadata"].items())),
            )
        return None

    def write_end(self, status: LaunchStatus) -> None:
        """Keep why the launch ends. Raises OSError."""
        if status.end is None:
            return
        fields = {
            "end": status.end.value,
            "detail": status.detail,
            "metadata": dict(status.metadata),
        }
        _write(self._end, json.dumps(fields))

    def close(self) -> None:
        """The launch is over: keep the log and the end alone."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._launch.unlink(missing_ok=True)

    def scratch_used(self) -> int:
        """Return the bytes on disk below the scratch folder."""
        used = 0
        for folder, _, files in os.walk(self.scratch):
            for name in files:
                with suppress(OSError):
                    used += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118
        return used

    def bound_log(self, max_bytes: int) -> None:
        """Keep the log and the one before it, each of about ``max_bytes`` at most."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > max_bytes:
                shutil.copyfile(self.log, self.path / "worker.log.1")
                # The worker appends to this very file.
                os.truncate(self.log, 0)

    def remove(self) -> None:
        """The launch never was."""
        shutil.rmtree(self.path, ignore_errors=True)


def living(workers: Path) -> Iterator[tuple[LaunchRef, LaunchFolder]]:
    """Yield every launch that has not ended, as far as the disk knows."""
    for file in sorted(workers.glob("*/launch.json")):
        job_id, _, launch = file.parent.name.rpartition("-")
        if launch.isdigit():
            ref = LaunchRef(job_id, int(launch), file.read_text())
            yield ref, LaunchFolder(workers, job_id, int(launch))


def prune(workers: Path, keep: int) -> None:
    """Delete the oldest folders of ended launches beyond ``keep``."""
    ended = [file.parent for file in workers.glob("*/end.json")]
    ended = [folder for folder in ended if not (folder / "launch.json").exists()]
    ended.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in ended[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all, durably."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
