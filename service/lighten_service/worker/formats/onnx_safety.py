"""Loading an ONNX upload: everything is checked before AIMET or a session sees the graph.

AIMET's own operators crash the process where a graph hides them, so every subgraph and function
is searched. Infinities and NaN pass AIMET in silence, so weights are looked at here.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lighten_service.worker.formats.onnx_files import (
    find_model_file,
    invalid,
    load_external_data,
    read_graph,
)
from lighten_service.worker.graphs.walk import all_nodes, attribute, constants, graphs, opset
from lighten_service.worker.runtime import check_runs

OPSETS = range(9, 25)
DEFAULT_MAX_BYTES = 16 * 2**30
_STANDARD_DOMAINS = ("", "ai.onnx")
_FLOAT_TYPES = (TensorProto.FLOAT,)
_REFUSED_TYPES: Mapping[int, str] = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
    TensorProto.STRING: "string",
}
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_RANDOM_OPS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_NAMES_SHOWN = 5


def load_onnx_model(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> onnx.ModelProto:
    """Read a model that somebody sent, with its external data, and check that it can be used.

    Args:
        path: an ``.onnx`` file, or a folder that holds one and its external data.
        max_bytes: limit of all weights together.

    Raises:
        InvalidArgument: for ``model.artifact``. INVALID_MODEL (damaged, or ONNX Runtime refuses
            it), UNSAFE_MODEL, EXTERNAL_DATA_MISSING, MODEL_FILE_NOT_FOUND, MODEL_TOO_LARGE,
            UNSUPPORTED_OPSET, UNKNOWN_OPERATORS, UNSUPPORTED_TYPE, ALREADY_QUANTIZED,
            TRAINING_GRAPH, RANDOM_OPERATORS, NON_FINITE_WEIGHTS.
    """
    file = find_model_file(path)
    model = read_graph(file)
    check_operators(model)
    check_types(model)
    load_external_data(model, file.parent, max_bytes)
    check_weights(model)
    check_runs(file)
    return model


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse what is not standard ONNX for inference in floating point."""
    version = opset(model)
    if version not in OPSETS:
        raise invalid(
            "UNSUPPORTED_OPSET",
            f"the model uses opset {version}; export it with {OPSETS[0]} to {OPSETS[-1]}",
        )
    nodes = list(all_nodes(model))
    functions = {(function.domain, function.name) for function in model.functions}
    _refuse_aimet(nodes)
    _refuse(nodes, _QUANTIZED_OPS, "ALREADY_QUANTIZED", "the model is quantized already ({names})")
    _refuse(nodes, _RANDOM_OPS, "RANDOM_OPERATORS", "the model draws random numbers ({names})")
    unknown = {
        f"{node.domain or 'ai.onnx'}.{node.op_type}"
        for node in nodes
        if (node.domain, node.op_type) not in functions and not _known(node, version)
    }
    if unknown:
        raise invalid(
            "UNKNOWN_OPERATORS",
            f"operators that ONNX opset {version} does not have: {_some(unknown)}; export the "
            "model with standard operators, before any runtime has fused them",
        )
    _refuse_training(model, nodes)


def check_types(model: onnx.ModelProto) -> None:
    """Refuse types that AIMET cannot quantize: sequences, maps, float64 and others."""
    for group, what in ((model.graph.input, "input"), (model.graph.output, "output")):
        for value in group:
            if value.type.WhichOneof("value") != "tensor_type":
                raise invalid("UNSUPPORTED_TYPE", f"{what} {value.name} is not a tensor")
            _check_type(value.type.tensor_type.elem_type, f"{what} {value.name}")
    for tensor in _tensors(model):
        _check_type(tensor.data_type, f"constant {tensor.name or '(unnamed)'}")
    for node in all_nodes(model):
        if node.op_type.startswith(("Sequence", "Optional")) or node.op_type == "SplitToSequence":
            raise invalid("UNSUPPORTED_TYPE", f"{node.op_type} makes a sequence or an optional")
        if node.op_type == "Cast":
            _check_type(int(str(attribute(node, "to", 0))), f"the output of {node.op_type}")


def check_weights(model: onnx.ModelProto) -> None:
    """Refuse constants that are damaged, infinite or not a number."""
    bounds = {name for n in all_nodes(model) if n.op_type == "Clip" for name in n.input[1:]}
    bad = [
        tensor.name or "(unnamed)"
        for tensor in _tensors(model)
        if tensor.name not in bounds and not _finite(tensor)
    ]
    if bad:
        raise invalid("NON_FINITE_WEIGHTS", f"weights with infinities or NaN: {_some(set(bad))}")


def _finite(tensor: TensorProto) -> bool:
    try:
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise invalid(
            "INVALID_MODEL",
            f"{tensor.name} does not hold the {prod(tensor.dims)} values of its shape",
        ) from error
    return tensor.data_type not in _FLOAT_TYPES or bool(np.isfinite(values).all())


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every stored tensor: initializers and those in attributes."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            raise invalid(
                "UNSUPPORTED_TYPE", f"{sparse.values.name} is sparse; store it as a dense tensor"
            )
    for node in all_nodes(model):
        for item in node.attribute:
            if item.type == onnx.AttributeProto.TENSOR:
                yield item.t
            yield from item.tensors


def _check_type(element_type: int, what: str) -> None:
    if element_type in _REFUSED_TYPES:
        name = _REFUSED_TYPES[element_type]
        raise invalid("UNSUPPORTED_TYPE", f"{what} is {name}; export the model in float32")


def _known(node: onnx.NodeProto, version: int) -> bool:
    if node.domain not in _STANDARD_DOMAINS:
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return False
    return not schema.deprecated


def _refuse(
    nodes: list[onnx.NodeProto], operators: frozenset[str], reason: str, message: str
) -> None:
    found = {node.op_type for node in nodes if node.op_type in operators}
    if found:
        hint = "give the float model, in evaluation mode"
        raise invalid(reason, f"{message.format(names=_some(found))}; {hint}")


def _refuse_aimet(nodes: list[onnx.NodeProto]) -> None:
    for node in nodes:
        if node.op_type == "QcQuantizeOp" or node.domain.startswith("aimet"):
            raise invalid(
                "UNSAFE_MODEL",
                f"the model holds {node.op_type}, an operator of AIMET's simulation; "
                "give the float model",
            )


def _refuse_training(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    training = {
        node.op_type
        for node in nodes
        if (node.op_type == "BatchNormalization" and _updates_statistics(node))
        or (node.op_type == "Dropout" and _drops(node, model))
    }
    if training or model.training_info:
        raise invalid(
            "TRAINING_GRAPH",
            f"the model was exported for training ({_some(training) or 'training_info'}); "
            "export it in evaluation mode",
        )


def _updates_statistics(node: onnx.NodeProto) -> bool:
    return bool(attribute(node, "training_mode", 0)) or sum(map(bool, node.output)) > 1


def _drops(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants(model.graph).get(node.input[2])
    return mode is None or bool(numpy_helper.to_array(mode).any())


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - _NAMES_SHOWN
    return ", ".join(ordered[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
