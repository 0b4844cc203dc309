"""``lighten-server``: reads its arguments and runs the control plane."""

import argparse
import gc
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT; exit with 2 when it cannot start."""
    options = _parser().parse_args(arguments)
    # The collector finds nothing while modules load, and looks at all of them again and again.
    gc.disable()
    # Before gRPC is imported: a handshake that a caller breaks off is no line of this log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from lighten_service.serving import run

    run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lighten-server",
        description="Makes neural networks smaller and faster. Settings: environment LIGHTEN_… "
        "or one TOML file.",
    )
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument("--port", type=int, help="gRPC port; 0 takes a free one")
    parser.add_argument("--http-port", type=int, help="port of signed URLs; 0 takes a free one")
    parser.add_argument("--metrics-port", type=int, help="Prometheus port; 0 takes a free one")
    parser.add_argument("--data-dir", type=Path, help="folder of the database and local objects")
    parser.add_argument(
        "--private",
        action="store_true",
        help="serve this machine alone, by local workers, without TLS and tokens, whatever the "
        "settings say",
    )
    parser.add_argument(
        "--ready-file", type=Path, help="write the addresses to this file as JSON once ready"
    )
    parser.add_argument(
        "--ready-fd", type=int, help="write the addresses to this descriptor as JSON once ready"
    )
    parser.add_argument("--version", action="version", version=version("lighten"))
    return parser


if __name__ == "__main__":
    main()
