"""Check that the stubs are up to date and that the baseline stands in the CHANGELOG."""

import filecmp
import hashlib
import sys
import tempfile
from pathlib import Path

from tools.generate_stubs import generate

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "client" / "lighten" / "v1"


def stale_stubs() -> list[str]:
    """Return the names of stubs that differ from what the protos generate."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "lighten" / "v1"
        names = {path.name for root in (fresh, STUBS) for path in root.glob("*_pb2*.py*")}
        _, differ, missing = filecmp.cmpfiles(fresh, STUBS, sorted(names), shallow=False)
    return sorted([*differ, *missing])


def baseline_in_changelog() -> bool:
    """Whether the CHANGELOG names the digest of the committed baseline."""
    digest = hashlib.sha256((ROOT / "protos" / "baseline.binpb").read_bytes()).hexdigest()
    return digest[:16] in (ROOT / "CHANGELOG.md").read_text()


def main() -> int:
    problems = [
        f"{name} is not what the protos generate: run `make proto`" for name in stale_stubs()
    ]
    if not baseline_in_changelog():
        problems.append(
            "protos/baseline.binpb was renewed without a CHANGELOG entry that names its digest"
        )
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
