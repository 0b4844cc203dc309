"""The command that says whether a file gives the same digits on every CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from lighten import _proof, errors
from lighten import v1 as pb
from lighten.cli.errors import NOT_PROVEN
from lighten.cli.options import Output, OutputOption
from lighten.cli.output import console, plain, print_json
from lighten.cli.render.check import check_view, twin_view
from lighten.cli.server import require_worker

_MODULE = "lighten_service.worker.integers.check"
# Its exit code for a file that it does not take.
_REFUSED = 2


def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Quantized ONNX, or a folder with it and its external data.",
            show_default=False,
        ),
    ],
    twin: Annotated[
        Path | None,
        typer.Option(
            "--twin",
            metavar="FILE",
            help="Write it here with weights as UINT8: the same grid, slower on most CPUs.",
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Prove that a quantized ONNX file gives the same digits on every CPU, or say where not.

    Looks at the integers of its weights and at the kernels that ONNX Runtime has for them.

    Any file will do, not only Lighten's. It needs no data, and runs nothing of the file.
    """
    require_worker()
    with Console(stderr=True).status("Looking at every weight"):
        proof = _prove(file, twin)
        proof_of_twin = _prove(twin) if twin is not None and output is Output.TEXT else None
    if output is Output.JSON:
        print_json(plain(proof))
    else:
        console().print(check_view(file.name, proof, proof_of_twin))
    if twin is not None and proof_of_twin is not None:
        console().print(twin_view(twin, proof_of_twin))
    if not _proof.is_proven(proof):
        raise typer.Exit(NOT_PROVEN)


def _prove(file: Path, twin: Path | None = None) -> pb.IntegerProof:
    """Run the check in a process of its own, for the client imports no ONNX.

    Raises:
        InvalidArgument: what is wrong with the file.
        Internal: the process ended otherwise.
    """
    options = [] if twin is None else [f"--twin={twin}"]
    ended = subprocess.run(  # noqa: S603  our own module
        [sys.executable, "-m", _MODULE, *options, "--", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == _REFUSED and ended.stdout:
        refusal = json.loads(ended.stdout)
        raise errors.InvalidArgument(refusal["message"], reason=refusal["reason"])
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2] or "no output"
        message = f"the check of {file} ended with code {ended.returncode}: {last}"
        raise errors.Internal(message, reason="CHECK_FAILED")
    return json_format.Parse(ended.stdout, pb.IntegerProof())
