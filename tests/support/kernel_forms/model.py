"""Many forms in one model, for one session costs more than a form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from tests.support.kernel_forms.form import Form, Integers
from tests.support.kernel_forms.layer_graph import LayerGraph
from tests.support.onnx_models import Builder


@dataclass(frozen=True, slots=True)
class Layer:
    """A form with its integers: data in unsigned codes, the weight as the graph stores it."""

    form: Form
    codes: Integers
    weight: Integers


@dataclass(frozen=True, slots=True)
class Case:
    """A model of independent layers, its inputs, and the outputs that integer arithmetic gives.

    ``outputs`` and ``expected``: the name of a form's output and its values, by the form's name.
    """

    forms: tuple[Form, ...]
    model: onnx.ModelProto
    feeds: dict[str, NDArray[Any]]
    outputs: dict[str, str]
    expected: dict[str, NDArray[Any]]


def case_of(layers: Sequence[Layer]) -> Case:
    """Return a model of these layers; no two forms may have one name."""
    builder, graphs = Builder(17), {}
    for layer in layers:
        graph = graphs[layer.form.name] = LayerGraph(layer.form)
        layer.form.build(graph, layer.weight)
        builder.nodes += graph.nodes
        builder.initializers += graph.constants
    assert len(graphs) == len(layers)
    inputs = [value for graph in graphs.values() for value in graph.inputs]
    outputs = [value for graph in graphs.values() for value in graph.outputs]
    return Case(
        tuple(each.form for each in layers),
        builder.model(inputs, outputs),
        {k: v for each in layers for k, v in each.form.feeds(each.codes, each.weight).items()},
        {name: graph.outputs[0].name for name, graph in graphs.items()},
        {each.form.name: each.form.expected(each.codes, each.weight) for each in layers},
    )


def wrong(case: Case, outputs: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
    """Return the forms whose output is not that of integer arithmetic, with the channels that are
    concerned."""
    found = {
        form: form.channels_with(outputs[case.outputs[form.name]] != case.expected[form.name])
        for form in case.forms
    }
    return {form.name: channels for form, channels in found.items() if channels}
