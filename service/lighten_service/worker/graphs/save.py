"""Writing ONNX as one file, byte for byte the same for the same model."""

from pathlib import Path

import onnx
from onnx import external_data_helper

from lighten_service.worker.graphs.shapes import copy_fields
from lighten_service.worker.graphs.walk import graphs, subgraphs

# A protobuf message ends at 2 GiB; the rest is for the graph itself.
_INLINE_LIMIT = 2**31 - 2**25
# Smaller tensors stay in the graph, where shape inference needs them.
_EXTERNAL_MINIMUM = 1024
# Offsets that operating systems can map.
_ALIGNMENT = 4096


def data_file(path: Path) -> Path:
    """Return where the weights of a graph lie that is too large for one file."""
    return path.with_name(f"{path.name}.data")


def save_single_file(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one self-contained file.

    The bytes depend on the graph alone: documentation, stack traces and the producer's version
    are left out, unordered lists are sorted. Above 2 GB the weights go to ``<name>.data``
    beside the file. The model itself is cleaned in place.
    """
    remove_metadata(model)
    _sort(model)
    if fits_one_file(model):
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    shell = _write_weights(model, data_file(path))
    path.write_bytes(shell.SerializeToString(deterministic=True))


def save_exact(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as it is, for `load_exact`. Above 2 GB the weights go to ``<name>.data``."""
    shell = model if fits_one_file(model) else _write_weights(model, data_file(path))
    path.write_bytes(shell.SerializeToString())


def load_exact(path: Path) -> onnx.ModelProto:
    """Read what `save_exact` wrote, field by field the same.

    Raises:
        DecodeError: the file is no ONNX.
    """
    model = onnx.load(str(path), load_external_data=False)
    outside = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    for tensor in outside:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return model


def load_with_external(path: Path) -> onnx.ModelProto:
    """Read a trusted model with its external data, which must lie beside it."""
    return onnx.load(str(path))


def fits_one_file(model: onnx.ModelProto) -> bool:
    """Say whether the model is small enough for one protobuf message."""
    weights = sum(len(t.raw_data) or t.ByteSize() for t in model.graph.initializer)
    return weights <= _INLINE_LIMIT


def remove_metadata(model: onnx.ModelProto) -> None:
    """Remove what says how the model was made and not what it does.

    The model's own properties stay, because readers use them (class names, strides), except
    those that exporters write about themselves.
    """
    model.producer_name = "lighten"
    model.ClearField("producer_version")
    model.ClearField("doc_string")
    kept = {
        entry.key: entry.value
        for entry in model.metadata_props
        if entry.key != "producer" and not entry.key.startswith("pkg.")
    }
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, dict(sorted(kept.items())))
    for graph in graphs(model.graph):
        _remove_graph_metadata(graph)
    for function in model.functions:
        _clear(function)
        for node in function.node:
            _clear(node)
            for below in subgraphs(node):
                for graph in graphs(below):
                    _remove_graph_metadata(graph)


def _remove_graph_metadata(graph: onnx.GraphProto) -> None:
    _clear(graph)
    for group in (graph.node, graph.initializer, graph.value_info, graph.input, graph.output):
        for item in group:
            _clear(item)
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")


def _clear(item: object) -> None:
    for field in ("doc_string", "metadata_props"):
        item.ClearField(field)  # type: ignore[attr-defined]


def _sort(model: onnx.ModelProto) -> None:
    """Order the lists whose order has no meaning. Nodes keep theirs: it is the execution order."""
    for graph in graphs(model.graph):
        graph.initializer.sort(key=lambda tensor: tensor.name)
        graph.value_info.sort(key=lambda info: info.name)
    model.opset_import.sort(key=lambda entry: entry.domain)
    model.functions.sort(key=lambda function: (function.domain, function.name))


def _write_weights(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write large initializers to ``path`` and return a model that refers to them."""
    shell = onnx.ModelProto()
    copy_fields(model, shell, "graph")
    copy_fields(model.graph, shell.graph, "initializer")
    with path.open("wb") as stream:
        for tensor in model.graph.initializer:
            entry = shell.graph.initializer.add()
            if len(tensor.raw_data) < _EXTERNAL_MINIMUM:
                entry.CopyFrom(tensor)
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            copy_fields(tensor, entry, "raw_data")
            entry.raw_data = b""
            external_data_helper.set_external_data(
                entry, path.name, offset=stream.tell(), length=len(tensor.raw_data)
            )
            entry.ClearField("raw_data")
            stream.write(tensor.raw_data)
    return shell
