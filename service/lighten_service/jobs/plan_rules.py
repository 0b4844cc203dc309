"""Rules of a plan that need no model: steps or a goal, and types."""

from collections.abc import Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.goal_rules import check_goal
from lighten_service.jobs.override_rules import check_overrides
from lighten_service.jobs.step_rules import check_steps
from lighten_service.jobs.support import HARDWARE_CONFIGS
from lighten_service.jobs.type_rules import check_types


def check_plan(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with ``spec.plan`` and the outputs that it is to have."""
    plan = spec.plan
    match plan.WhichOneof("how"):
        case "steps":
            yield from check_steps(spec)
        case "goal":
            yield from check_goal(spec)
        case None:
            yield Violation(
                "plan.steps", "is required: name at least the step `calibrate`, or set a goal"
            )
            return
    yield from check_overrides(plan.quantization)
    yield from check_types(spec)
    name = plan.quantization.hardware_config
    if name and name not in HARDWARE_CONFIGS:
        yield Violation(
            "plan.quantization.hardware_config",
            f'there is no configuration "{name}"; use one of {", ".join(HARDWARE_CONFIGS)}, or '
            "leave it empty for AIMET's default",
        )
