"""All benchmarks, or those named, one after the other: ``python -m tests.benchmarks [NAME ...]``.

Each runs in a process of its own, so that none meets what another has loaded.
"""

import argparse
import subprocess
import sys

NAMES = (
    "pipeline",
    "rounding",
    "sensitivity",
    "fashion",
    "peers",
    "cpus",
    "warm_start",
    "control_plane",
    "store",
    "kubernetes",
)


def run(name: str) -> bool:
    """Run one benchmark, its figures to standard output; return whether it got through."""
    print(f"--- {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}"]).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = [name for name in names if not run(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
