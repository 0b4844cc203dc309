"""Rules of the types that a plan gives to some layers."""

from collections.abc import Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.technique_rules import check_selector


def check_overrides(quantization: pb.QuantizationConfig) -> Iterator[Violation]:
    """Yield what is wrong with ``overrides``, apart from which types work together."""
    for index, override in enumerate(quantization.overrides):
        path = f"plan.quantization.overrides[{index}]"
        yield from check_selector(override.select, f"{path}.select")
        typed = override.weights or override.activations or override.uint8_weights
        if override.leave_float and typed:
            yield Violation(
                f"{path}.leave_float",
                "excludes weights, activations and uint8_weights; set it or them",
            )
        elif not override.leave_float and not typed:
            yield Violation(
                path, "changes nothing: set weights, activations, uint8_weights or leave_float"
            )
