"""Rules of a plan's steps: order, engines, needs, ids."""

from collections import Counter
from collections.abc import Iterable, Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.support import ENGINES, TechniqueFacts, technique_of
from lighten_service.jobs.technique_rules import check_parameters

# Metrics of events stand in columns named so, or after a step.
_COLUMNS = frozenset({"baseline", "naive", "optimized"})
_STEPS = "plan.steps.steps"


def check_steps(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with ``spec.plan.steps``."""
    steps = spec.plan.steps.steps
    known: list[TechniqueFacts] = []
    for index, step in enumerate(steps):
        path = f"{_STEPS}[{index}]"
        technique = technique_of(step)
        if technique is None:
            yield Violation(path, "names no technique; GetCapabilities lists them")
            continue
        known.append(technique)
        yield from _check_needs(spec, technique, f"{path}.{technique.name}")
        yield from check_parameters(spec, step, f"{path}.{technique.name}")
    yield from _check_ids(steps)
    if len(known) == len(steps) > 0:
        yield from _check_counts(known)
        yield from _check_order(known)


def _check_needs(spec: pb.JobSpec, technique: TechniqueFacts, path: str) -> Iterator[Violation]:
    engine = ENGINES.get(spec.model.format)
    if engine is not None and engine not in technique.info.engines:
        names = ", ".join(pb.Engine.Name(item) for item in technique.info.engines)
        yield Violation(path, f"runs on {names} alone, and the model's format has another engine")
    if pb.NEED_CALIBRATION in technique.info.needs and not spec.HasField("calibration"):
        yield Violation("calibration", "is required: ranges and weights are fitted to data")
    if pb.NEED_LABELS in technique.info.needs and not spec.HasField("evaluation"):
        yield Violation("evaluation", f"is required, with labels: {technique.name} needs them")


def _check_ids(steps: Iterable[pb.Step]) -> Iterator[Violation]:
    first: dict[str, int] = {}
    for index, step in enumerate(steps):
        if step.id in _COLUMNS:
            yield Violation(
                f"{_STEPS}[{index}].id",
                f'"{step.id}" is the name of a column of the result; take another',
            )
        if step.id and first.setdefault(step.id, index) != index:
            yield Violation(
                f"{_STEPS}[{index}].id",
                f'"{step.id}" is the id of steps[{first[step.id]}] too; ids must differ',
            )


def _check_counts(techniques: list[TechniqueFacts]) -> Iterator[Violation]:
    counts = Counter(technique.name for technique in techniques)
    for technique in {item.name: item for item in techniques}.values():
        if technique.info.once and counts[technique.name] > 1:
            yield Violation(_STEPS, f"{technique.name} may stand in a plan only once")
    if not counts["calibrate"]:
        yield Violation(_STEPS, "has no step `calibrate`; a plan needs exactly one")


def _check_order(techniques: list[TechniqueFacts]) -> Iterator[Violation]:
    places = [place(technique) for technique in techniques]
    if places != sorted(places):
        order = ", ".join(technique.name for technique in sorted(techniques, key=place))
        yield Violation(_STEPS, f"cannot work in this order; this one can: {order}")


def place(technique: TechniqueFacts) -> tuple[int, bool]:
    """Return what a plan's techniques are sorted by."""
    # A scale chosen after the rounding was learned would throw the rounding away.
    return technique.info.phase, technique.name == "ada_round"
