"""Programs, and what they cost."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]

_SAMPLING_SECONDS = 0.1
# The peers report their use to their makers otherwise.
_QUIET = {"NNCF_CI": "1", "CI": "true"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a whole process with all that it started, imports too."""

    seconds: float
    cpu_seconds: float
    # The most memory that one of the processes had, in bytes.
    peak: int


def run(command: Sequence[str | Path], log: Path) -> Cost:
    """Run a program, its output to a file.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    usage = _Usage()
    began = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env=os.environ | _QUIET
        )
        try:
            while process.poll() is None:
                usage.sample(process.pid)
                time.sleep(_SAMPLING_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(seconds, sum(usage.cpu_seconds.values()), max(usage.peaks.values()))


@dataclass
class _Usage:
    """By process: what it had used when it was last seen."""

    cpu_seconds: dict[psutil.Process, float] = field(default_factory=dict)
    peaks: dict[psutil.Process, int] = field(default_factory=dict)

    def sample(self, pid: int) -> None:
        try:
            program = psutil.Process(pid)
            family = [program, *program.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                times, peak = process.cpu_times(), _peak(process.pid)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            self.cpu_seconds[process] = times.user + times.system
            self.peaks[process] = max(peak, self.peaks.get(process, 0))


def _peak(pid: int) -> int:
    """Return the largest resident set of a process so far; 0 when it has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
