"""ONNX files and encodings of a torch model, float or simulated.

Every graph comes from the same tracing exporter, and AIMET names encodings after its tensors, so
that the float graph, the QDQ graph and the encodings agree on names.
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aimet_torch.onnx
import onnx
import torch
from aimet_torch.quantsim import QuantizationSimModel
from onnx import version_converter

from lighten import v1 as pb
from lighten_service.worker.engines.torch_prepare import Inputs
from lighten_service.worker.graphs.biases import bias_encodings, quantize_biases
from lighten_service.worker.graphs.walk import consumers

# The newest opset that the tracing exporter writes; newer ones are converted to.
_EXPORTER_OPSET: Final = 20
# ONNX Runtime has integer kernels for signed activations on ARM alone: elsewhere a residual Add of
# signed operands, and each convolution around it, is computed in float.
_ACTIVATIONS: Final = "unsigned"
_VERSIONS: Final = {
    pb.ENCODINGS_VERSION_0_6_1: "0.6.1",
    pb.ENCODINGS_VERSION_1_0_0: "1.0.0",
    pb.ENCODINGS_VERSION_2_0_0: "2.0.0",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """What an exported graph looks like from outside."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int

    def options(self, opset: int) -> dict[str, Any]:
        """Return the exporter's arguments, with the first axis of every tensor open."""
        names = (*self.inputs, *self.outputs)
        return {
            "input_names": list(self.inputs),
            "output_names": list(self.outputs),
            "dynamic_axes": {name: {0: "batch"} for name in names},
            "opset_version": opset,
            # The tracing exporter, which names tensors after modules.
            "dynamo": False,
        }


def float_graph(
    module: torch.nn.Module, inputs: Inputs, signature: Signature, scratch: Path
) -> onnx.ModelProto:
    """Return the graph of a float module."""
    opset = min(signature.opset, _EXPORTER_OPSET)
    with _folder(scratch) as folder:
        path = folder / "model.onnx"
        torch.onnx.export(module, inputs, path, **signature.options(opset))
        model = onnx.load(path)
    return _finish(model, signature)


def simulated_graph(
    sim: QuantizationSimModel,
    inputs: Inputs,
    signature: Signature,
    scratch: Path,
    version: pb.EncodingsVersion.ValueType,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the float graph of a simulation, and its encodings as the parsed JSON.

    The weights are rounded to their grids, so that whoever quantizes them again finds the same
    integers.
    """
    opset = min(signature.opset, _EXPORTER_OPSET)
    with _folder(scratch) as folder:
        path = folder / "model.onnx"
        sim.onnx.export(
            inputs,
            str(path),
            encoding_version=_VERSIONS[version],
            export_int32_bias=False,
            force_activation_as=_ACTIVATIONS,
            **signature.options(opset),
        )
        model = onnx.load(path)
        document: dict[str, Any] = json.loads(path.with_suffix(".encodings").read_text())
    model = _finish(model, signature, keep=encoded_tensors(document))
    if version == pb.ENCODINGS_VERSION_2_0_0:
        document["encodings"] += bias_encodings(model.graph, document)
    return model, document


def qdq_graph(
    sim: QuantizationSimModel,
    inputs: Inputs,
    signature: Signature,
    scratch: Path,
    document: Mapping[str, Any],
) -> onnx.ModelProto:
    """Return the graph with quantize and dequantize nodes, weights and biases as integers.

    The biases are ours: AIMET's have scales of their own, which integer kernels ignore.

    Args:
        sim: calibrated.
        inputs: one sample.
        signature: names and opset.
        scratch: folder for temporary files.
        document: encodings of version 2.0.0, from `simulated_graph`.
    """
    with _folder(scratch) as folder:
        path = folder / "model.onnx"
        aimet_torch.onnx.export(
            sim.model,
            inputs,
            str(path),
            prequantize_constants=True,
            export_int32_bias=False,
            force_activation_as=_ACTIVATIONS,
            **signature.options(signature.opset),
        )
        # Reads what AIMET left in files beside it, too.
        model = onnx.load(path)
    tidy(model)
    quantize_biases(model, document["encodings"])
    return model


def encoded_tensors(document: dict[str, Any]) -> set[str]:
    """Return the names of the tensors in an encodings document of any version."""
    names: set[str] = set()
    for key in ("encodings", "activation_encodings", "param_encodings"):
        entries = document.get(key, ())
        names.update(entries if isinstance(entries, dict) else (e["name"] for e in entries))
    return names


def tidy(model: onnx.ModelProto, keep: Collection[str] = ()) -> None:
    """Remove what the exporter leaves: Identity nodes, and constants that nothing reads.

    An Identity whose output is in `keep` stays, because encodings name that output.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    readers = consumers(graph)
    for node in [n for n in graph.node if n.op_type == "Identity"]:
        source, target = node.input[0], node.output[0]
        if target in outputs or target in keep:
            continue
        for reader in readers[target]:
            for index, name in enumerate(reader.input):
                if name == target:
                    reader.input[index] = source
        readers[source] = readers[source] + readers[target]
        graph.node.remove(node)
    _remove_dead_nodes(graph)


def _remove_dead_nodes(graph: onnx.GraphProto) -> None:
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _finish(
    model: onnx.ModelProto, signature: Signature, keep: Collection[str] = ()
) -> onnx.ModelProto:
    if signature.opset > _EXPORTER_OPSET:
        model = version_converter.convert_version(model, signature.opset)
    tidy(model, keep)
    return model


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """Give an export a folder of its own, since it leaves files, and keep its warnings back."""
    with TemporaryDirectory(dir=scratch) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(name)
