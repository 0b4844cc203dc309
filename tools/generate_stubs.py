"""Generate the Python stubs: ``python -m tools.generate_stubs OUT``."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent.parent / "protos"
WITH_SERVICES = {"optimization_service", "worker_service"}


def generate(out: Path) -> None:
    """Write the stubs of every proto below ``out``, messages and services with their types."""
    sources = sorted(PROTOS.glob("lighten/v1/*.proto"))
    bin_folder = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
    ]
    services = [source for source in sources if source.stem in WITH_SERVICES]
    grpc = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    for command in ([*arguments, *map(str, sources)], [*arguments, *grpc, *map(str, services)]):
        if protoc.main(command) != 0:
            raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
