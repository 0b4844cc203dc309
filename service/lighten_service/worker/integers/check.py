"""The proof of one file, for the command line.

``python -m lighten_service.worker.integers.check FILE [--twin OUT]`` writes one JSON document to
standard output: an IntegerProof, or with exit code 2 ``reason`` and ``message`` of what is wrong
with the file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx
from google.protobuf import json_format

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, LightenError
from lighten_service.worker.formats.onnx_files import (
    find_model_file,
    invalid,
    load_external_data,
    read_graph,
)
from lighten_service.worker.formats.onnx_safety import DEFAULT_MAX_BYTES
from lighten_service.worker.graphs.save import save_exact
from lighten_service.worker.graphs.walk import all_nodes
from lighten_service.worker.integers.products import OPERANDS
from lighten_service.worker.integers.proof import prove_model
from lighten_service.worker.integers.twin import unsigned_twin

EXIT_PROVED: Final = 0
EXIT_REFUSED: Final = 2
# What a file has of which integers are the point, beside operators on them.
_QUANTIZING: Final = frozenset(
    {"DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "QAttention", "QuantizeLinear"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and return its exit code."""
    parser = argparse.ArgumentParser(prog="check", description="Prove a QDQ file exact.")
    parser.add_argument("file", type=Path, help="ONNX, with its external data beside it")
    parser.add_argument("--twin", type=Path, help="where to write it with unsigned weights")
    arguments = parser.parse_args(argv)
    try:
        proof = check(arguments.file, arguments.twin)
    except LightenError as error:
        sys.stdout.write(json.dumps({"reason": error.reason, "message": error.message}) + "\n")
        return EXIT_REFUSED
    document = json_format.MessageToJson(proof, preserving_proto_field_name=True, indent=None)
    sys.stdout.write(f"{document}\n")
    return EXIT_PROVED


def check(file: Path, twin: Path | None) -> pb.IntegerProof:
    """Prove what can be proven of anybody's file, and write its twin where one is asked for.

    Raises:
        InvalidArgument: MODEL_FILE_NOT_FOUND, INVALID_MODEL, UNSAFE_MODEL, EXTERNAL_DATA_MISSING,
            MODEL_TOO_LARGE, NOT_QUANTIZED, FILE_ERROR.
    """
    if not file.exists():
        raise invalid("MODEL_FILE_NOT_FOUND", f"there is no file {file}")
    source = find_model_file(file)
    if twin is not None and twin.resolve() == source.resolve():
        raise InvalidArgument(
            "FILE_ERROR", f"{twin} is the file itself; give the twin another name"
        )
    model = read_graph(source)
    if not any(
        node.op_type in _QUANTIZING or node.op_type in OPERANDS for node in all_nodes(model)
    ):
        raise invalid(
            "NOT_QUANTIZED", f"{source.name} computes in float: it has no integers to look at"
        )
    load_external_data(model, source.parent, DEFAULT_MAX_BYTES)
    proof = prove_model(model, source, Path(tempfile.gettempdir()))
    if twin is not None:
        _write(unsigned_twin(model), twin)
    return proof


def _write(model: onnx.ModelProto, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_exact(model, path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise InvalidArgument("FILE_ERROR", message) from error


if __name__ == "__main__":
    raise SystemExit(main())
