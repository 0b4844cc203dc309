"""Candidates: plans, each made from another by one change."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from lighten import v1 as pb
from lighten_service.jobs.resolve import resolve_plan
from lighten_service.jobs.step_rules import place
from lighten_service.jobs.support import technique_of

# Steps in their serialized form.
Key = tuple[bytes, ...]
# Changes a plan in place.
Edit = Callable[[pb.Plan], None]

NAIVE = "naive"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan of steps that could be submitted as it is, every default filled in."""

    name: str
    # What it adds to which trial, for a person.
    description: str
    plan: pb.Plan

    @classmethod
    def naive(cls, quantization: pb.QuantizationConfig) -> Self:
        """Return the plan that every other one grows from: folded batch norms, min-max ranges."""
        steps = [
            pb.Step(fold_batch_norms=pb.FoldBatchNorms()),
            pb.Step(calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)),
        ]
        plan = pb.Plan(quantization=quantization, steps=pb.Steps(steps=steps))
        resolve_plan(plan)
        return cls(NAIVE, "batch norms folded, min-max ranges", plan)

    def changed(self, label: str, description: str, *edits: Edit) -> Self:
        """Return a candidate with one more change; ``label`` is added to the name."""
        plan = pb.Plan()
        plan.CopyFrom(self.plan)
        for edit in edits:
            edit(plan)
        resolve_plan(plan)
        name = label if self.name == NAIVE else f"{self.name}+{label}"
        return type(self)(name, f"{self.name}, with {description}", plan)

    @property
    def key(self) -> bytes:
        """Equal for plans that do the same."""
        return self.plan.SerializeToString(deterministic=True)

    @property
    def types(self) -> bytes:
        """Equal for plans that give every layer the same type."""
        if self.has("mixed_precision"):
            return self.key
        return self.plan.quantization.SerializeToString(deterministic=True)

    @property
    def float_steps(self) -> Key:
        """Equal for plans that quantize the same float model."""
        return keys_of(split(self.plan)[0])

    def has(self, technique: str) -> bool:
        return any(step.WhichOneof("technique") == technique for step in self.plan.steps.steps)


def put(step: pb.Step) -> Edit:
    """Put a step where it belongs in the order, in place of one with the same technique."""

    def edit(plan: pb.Plan) -> None:
        name = step.WhichOneof("technique")
        others = [item for item in plan.steps.steps if item.WhichOneof("technique") != name]
        ordered = sorted([*others, step], key=_place)
        del plan.steps.steps[:]
        plan.steps.steps.extend(ordered)

    return edit


def quantize(changes: pb.QuantizationConfig) -> Edit:
    """Set fields of the quantization; overrides are added to those that there are."""
    return lambda plan: plan.quantization.MergeFrom(changes)


def split(plan: pb.Plan) -> tuple[list[pb.Step], pb.Step, list[pb.Step]]:
    """Return the steps on the float model, the calibration, and the steps after it."""
    steps = list(plan.steps.steps)
    index = next(i for i, step in enumerate(steps) if step.HasField("calibrate"))
    return steps[:index], steps[index], steps[index + 1 :]


def keys_of(steps: Sequence[pb.Step]) -> Key:
    return tuple(step.SerializeToString(deterministic=True) for step in steps)


def prefixes(items: Key) -> Iterator[Key]:
    """Yield the longest first, the whole included, the empty one last."""
    for length in range(len(items), -1, -1):
        yield items[:length]


def _place(step: pb.Step) -> tuple[int, bool]:
    technique = technique_of(step)
    if technique is None:
        raise AssertionError("a step without a technique")
    return place(technique)
