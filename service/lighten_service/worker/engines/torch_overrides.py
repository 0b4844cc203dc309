"""Types of single operators, written over those of the plan."""

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from lighten import v1 as pb
from lighten_service.worker.engines.torch_operators import Operator
from lighten_service.worker.engines.torch_places import Place, places
from lighten_service.worker.engines.torch_types import with_type
from lighten_service.worker.selectors import selected


def apply_overrides(
    model: nn.Module, operators: Sequence[Operator], overrides: Iterable[pb.LayerOverride]
) -> None:
    """Give the quantizers of selected operators other types, or remove them; later overrides win.

    Args:
        model: simulation, not yet calibrated.
        operators: of the model.
        overrides: of the `QuantizationConfig`.

    Raises:
        InvalidArgument: SELECTOR_MATCHES_NOTHING.
    """
    known = [(operator.name, operator.op) for operator in operators]
    stand = places(model, operators)
    # None leaves a tensor in floating point.
    wanted: dict[Place, pb.DataType.ValueType | None] = {}
    for index, override in enumerate(overrides):
        names = selected(override.select, known, f"plan.quantization.overrides[{index}].select")
        for place in stand:
            asked = override.weights if place.is_weight else override.activations
            if names.isdisjoint(place.names):
                continue
            if override.leave_float:
                wanted[place] = None
            elif asked:
                wanted[place] = asked
    for place, type_ in wanted.items():
        if place.quantizer is not None:
            place.put(None if type_ is None else with_type(place.quantizer, type_))


def unsigned_operators(
    operators: Sequence[Operator], overrides: Iterable[pb.LayerOverride]
) -> frozenset[str]:
    """Return the operators whose weights are to be stored as UINT8."""
    return _selected(operators, overrides, lambda override: override.uint8_weights)


def of_their_own(
    operators: Sequence[Operator], overrides: Iterable[pb.LayerOverride]
) -> frozenset[str]:
    """Return the operators whose weights have a type of their own, or none."""
    return _selected(
        operators, overrides, lambda override: bool(override.weights or override.leave_float)
    )


def _selected(
    operators: Sequence[Operator],
    overrides: Iterable[pb.LayerOverride],
    wanted: Callable[[pb.LayerOverride], bool],
) -> frozenset[str]:
    known = [(operator.name, operator.op) for operator in operators]
    return frozenset(
        name
        for index, override in enumerate(overrides)
        if wanted(override)
        for name in selected(override.select, known, f"plan.quantization.overrides[{index}].select")
    )
