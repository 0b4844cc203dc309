"""The integer kernels that ONNX Runtime chooses for a file, from the graph that it makes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx
import onnxruntime

from lighten_service.worker.formats.onnx_files import invalid
from lighten_service.worker.graphs.walk import attribute
from lighten_service.worker.integers.products import IntegerProduct, integer_product
from lighten_service.worker.integers.scopes import Scope, scopes
from lighten_service.worker.runtime import CPU, RUNTIME_ERRORS, session_options, short_reason

RUNTIME: Final = f"onnxruntime {onnxruntime.__version__}"
# Lets integers of activations stay signed, as sessions on ARM do; those on x86 make them unsigned.
_SIGNED_ACTIVATIONS: Final = "session.qdqisint8allowed"
# MatMulNBits quantizes its data to 8 bits at this level, and computes in float at others.
_INTEGER_LEVEL: Final = 4
_STANDARD: Final = ("", "ai.onnx")
# Operators beyond ONNX's own that hold 8-bit constants and multiply none of them with another.
_HARMLESS: Final = frozenset(
    {
        "DequantizeLinear",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulNBits",
        "QEmbedLayerNormalization",
        "QLinearAdd",
        "QLinearConcat",
        "QLinearMul",
        "QLinearWhere",
        "QuantizeLinear",
    }
)


@dataclass(slots=True)
class Kernels:
    """Those that compute with 8-bit integers on one family of CPUs.

    ``packed``: products of float data, which they quantize as they run, and repacked weights.
    ``unknown``: operators that nothing is known about. ``constants``: names of all constants.
    """

    products: list[IntegerProduct] = field(default_factory=list)
    packed: list[onnx.NodeProto] = field(default_factory=list)
    unknown: list[onnx.NodeProto] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)


def kernels_of(
    source: onnx.ModelProto | Path, *, signed_activations: bool, scratch: Path | None
) -> Kernels:
    """Return what a session at full optimization runs, on x86 or on ARM.

    Args:
        source: a model, or its file with external data beside it.
        signed_activations: whether integers of activations may stay signed: on ARM.
        scratch: folder for temporary files; None for the system's.

    Raises:
        InvalidArgument: INVALID_MODEL with the short reason.
    """
    found = Kernels()
    for scope in scopes(_optimized(source, signed_activations, scratch)):
        found.constants.update(scope.known)
        for node in scope.graph.node:
            _note(node, scope, found)
    return found


def _optimized(
    source: onnx.ModelProto | Path, signed_activations: bool, scratch: Path | None
) -> onnx.ModelProto:
    with TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder, "optimized.onnx")
        options = session_options(write_optimized=file)
        options.add_session_config_entry(_SIGNED_ACTIVATIONS, str(int(signed_activations)))
        content = str(source) if isinstance(source, Path) else source.SerializeToString()
        try:
            onnxruntime.InferenceSession(content, options, providers=[CPU])
        except RUNTIME_ERRORS as error:
            raise invalid(
                "INVALID_MODEL", f"ONNX Runtime cannot load the model: {short_reason(error)}"
            ) from error
        return onnx.load(file)


def _note(node: onnx.NodeProto, scope: Scope, found: Kernels) -> None:
    product = integer_product(node, scope)
    if product is not None:
        found.products.append(product)
    elif node.op_type == "MatMulNBits" and attribute(node, "accuracy_level") == _INTEGER_LEVEL:
        found.packed.append(node)
    elif node.domain not in _STANDARD and node.op_type not in _HARMLESS and _holds(node, scope):
        found.unknown.append(node)


def _holds(node: onnx.NodeProto, scope: Scope) -> bool:
    """Whether an operator has a constant of 8 bits that is no zero point."""
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    tensors = (scope.known[name] for name in node.input if name in scope.known)
    return any(tensor.data_type in integers and len(tensor.dims) > 1 for tensor in tensors)
