"""Runs a recipe of ``docs/recipes`` end to end, without a server: ``make recipe NAME=...``.

Makes the inputs first, and tells the seconds and the peak memory of the worker at the end.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil

from lighten.spec import load_spec
from tools.demo_data import ROOT
from tools.recipe_inputs import prepare

RECIPES = ROOT / "docs" / "recipes"
_SAMPLING_SECONDS = 0.2


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.parent.name for path in RECIPES.glob("*/job.yaml"))


def inputs(recipe: str) -> list[Path]:
    """Return the files that a recipe reads."""
    spec = load_spec(RECIPES / recipe / "job.yaml")
    references = (spec.model.artifact, spec.calibration.data, spec.evaluation.data)
    return [(RECIPES / recipe / item.uri).resolve() for item in references if item.uri]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names())
    name = parser.parse_args().name
    prepare(inputs(name), lambda text: print(f"  {text}", flush=True))
    output = ROOT / "out" / "recipes" / name
    command = [Path(sys.executable).with_name("lighten"), "run", RECIPES / name / "job.yaml"]
    began = time.monotonic()
    status, peak = _run([*command, "--to", output])
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.0f} s, peak {peak / 1e9:.1f} GB of memory; files in {output}")
    return status


def _run(command: list[str | Path]) -> tuple[int, int]:
    """Return the exit status, and the most memory that one process of it had, in bytes."""
    peak = 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while process.poll() is None:
                peak = max(peak, _largest(process.pid))
                time.sleep(_SAMPLING_SECONDS)
        except KeyboardInterrupt:
            process.wait()  # the terminal has told it too
        return process.returncode, peak


def _largest(pid: int) -> int:
    try:
        return max(
            (child.memory_info().rss for child in psutil.Process(pid).children(recursive=True)),
            default=0,
        )
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    sys.exit(main())
