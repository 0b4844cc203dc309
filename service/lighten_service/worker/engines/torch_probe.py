"""A simulation with one group of quantizers at a time, what lies before them computed once."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from aimet_torch.nn import BaseQuantizationMixin
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from lighten_service.worker.engines.torch_prepare import Inputs, flatten_outputs
from lighten_service.worker.quantized import Check

Outputs = Sequence[torch.Tensor]
# Groups so close together run their common rest as one batch of at most so many samples, which
# costs less than one after the other.
_SPAN = 24
_STACKED_SAMPLES = 64

# Switches all quantizers off but those named.
Only = Callable[[Collection[str]], AbstractContextManager[None]]


class Prober:
    """Runs a simulation for groups of its quantizers, each with this group alone switched on.

    The simulation must not change while it is in use.
    """

    def __init__(
        self, simulation: GraphModule, modules: Mapping[str, Collection[nn.Module]], only: Only
    ) -> None:
        """Look at the graph.

        Args:
            simulation: calibrated.
            modules: those that hold each quantizer, by the quantizer's name.
            only: of the simulation.
        """
        self._only = only
        self._nodes = list(simulation.graph.nodes)
        self._runner = _Runner(simulation)
        calls = [node for node in self._nodes if node.op == "call_module"]
        owners = {id(part): node for node in calls for part in _module(simulation, node).modules()}
        self._owners = {
            name: {owners[id(module)] for module in found} for name, found in modules.items()
        }
        self._depending = _depending(self._nodes)

    @torch.no_grad()
    def run(self, inputs: Inputs) -> Outputs:
        """Return the outputs with all quantizers off."""
        with self._only(()):
            state = self._runner.start(inputs)
            self._advance(state, 0, len(self._nodes))
            return self._outputs(state)

    @torch.no_grad()
    def probe(
        self, inputs: Inputs, groups: Sequence[Collection[str]], check: Check
    ) -> Iterator[tuple[int, Outputs]]:
        """Yield the position of each group with its outputs, nearly in execution order."""
        state, done, size = self._runner.start(inputs), 0, len(inputs[0])
        for chunk in _chunks(self._find(groups), max(_STACKED_SAMPLES // size, 1)):
            stop = max(group.stop for group in chunk)
            forks = []
            for group in chunk:
                check()
                with self._only(()):
                    self._advance(state, done, group.first)
                done = group.first
                forks.append(self._begin(state, group, stop))
            with self._only(()):
                yield from zip(
                    (group.index for group in chunk), self._finish(forks, stop, size), strict=True
                )

    def _find(self, groups: Sequence[Collection[str]]) -> "list[_Group]":
        """Return where the groups stand, in execution order."""
        position = {node: at for at, node in enumerate(self._nodes)}
        found = []
        for index, names in enumerate(groups):
            nodes = {node for name in names for node in self._owners[name]}
            places = sorted(position[node] for node in nodes)
            targets = frozenset(str(node.target) for node in nodes)
            found.append(_Group(index, names, targets, places[0], places[-1] + 1))
        return sorted(found, key=lambda group: group.first)

    def _begin(self, state: "_Runner", group: "_Group", stop: int) -> "_Runner":
        """Return a run of a group from its first operator on."""
        fork = state.fork()
        fork.quantized = group.targets
        with self._only(group.names):
            self._advance(fork, group.first, stop)
        fork.quantized = frozenset()
        return fork

    def _finish(self, forks: "Sequence[_Runner]", start: int, size: int) -> list[Outputs]:
        """Run what is left of some runs, as one of a larger batch where their values allow it."""
        stacked = self._stack(forks, size) if len(forks) > 1 else None
        if stacked is not None:
            self._advance(stacked, start, len(self._nodes))
            parts = [torch.split(output, size) for output in self._outputs(stacked)]
            return [*zip(*parts, strict=True)]
        for fork in forks:
            self._advance(fork, start, len(self._nodes))
        return [self._outputs(fork) for fork in forks]

    def _stack(self, forks: "Sequence[_Runner]", size: int) -> "_Runner | None":
        """Join the batches of some runs; None where a value does not tell its samples apart."""
        stacked = forks[0].fork()
        for node in forks[0].env:
            values = [fork.env[node] for fork in forks]
            if node not in self._depending:
                continue
            if not all(isinstance(each, torch.Tensor) and _batched(each, size) for each in values):
                return None
            stacked.env[node] = torch.cat(values)
        return stacked

    def _advance(self, state: "_Runner", start: int, stop: int) -> None:
        for node in self._nodes[start:stop]:
            state.step(node)

    def _outputs(self, state: "_Runner") -> Outputs:
        return flatten_outputs(state.env[self._nodes[-1]])


@dataclass(frozen=True, slots=True)
class _Group:
    """A group of quantizers. ``targets``: the modules that hold them, at the nodes from ``first``
    to before ``stop``."""

    index: int
    names: Collection[str]
    targets: frozenset[str]
    first: int
    stop: int


def _chunks(groups: Sequence[_Group], most: int) -> Iterator[list[_Group]]:
    """Yield groups that stand close together, at most so many at a time."""
    chunk: list[_Group] = []
    for group in groups:
        if chunk and (len(chunk) == most or group.stop - chunk[0].first > _SPAN):
            yield chunk
            chunk = []
        chunk.append(group)
    if chunk:
        yield chunk


def _depending(nodes: Sequence[Node]) -> set[Node]:
    """Return the nodes whose values depend on the inputs."""
    found: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _batched(values: torch.Tensor, size: int) -> bool:
    return values.dim() > 0 and len(values) == size


class _Runner(Interpreter):
    """A simulation under way, with modules in float except those that are named."""

    def __init__(self, simulation: GraphModule) -> None:
        super().__init__(simulation)
        self.quantized: frozenset[str] = frozenset()
        # AIMET's modules cost time of their own even with all their quantizers off.
        self._floats = {
            str(node.target): module.get_original_module()
            for node in simulation.graph.nodes
            if node.op == "call_module" and _is_simple(module := _module(simulation, node))
        }

    def start(self, inputs: Inputs) -> "_Runner":
        """Return a run on a batch that has not begun."""
        state = self.fork()
        state.env, state.args_iter = {}, iter(inputs)
        return state

    def fork(self) -> "_Runner":
        """Return a run that goes on from here by itself."""
        other = copy.copy(self)
        other.env = dict(self.env)
        return other

    def step(self, node: Node) -> None:
        """Compute a node, and forget the values that it was the last to need."""
        self.env[node] = self.run_node(node)
        for dead in self.user_to_last_uses.get(node, ()):
            del self.env[dead]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target not in self.quantized and target in self._floats:
            return self._floats[target](*args, **kwargs)
        found = super().call_module(target, args, kwargs)
        # AIMET's subclass carries an encoding, which slows down what follows.
        return found.as_subclass(torch.Tensor) if isinstance(found, torch.Tensor) else found


def _module(simulation: GraphModule, node: Node) -> Any:
    return simulation.get_submodule(str(node.target))


def _is_simple(module: nn.Module) -> bool:
    """Whether a module is quantized itself, and holds no other that is."""
    quantized = [part for part in module.modules() if isinstance(part, BaseQuantizationMixin)]
    return quantized == [module]
