"""What can never start here: more than the operator allows one job."""

from lighten import v1 as pb
from lighten_service.executors.kubernetes.manifest import gpu_profile
from lighten_service.executors.kubernetes.options import KubernetesOptions
from lighten_service.jobs.errors import ResourceExhausted


def check(resources: pb.Resources, options: KubernetesOptions) -> None:
    """Refuse what is beyond the operator's limits. What is free now, only the scheduler knows.

    Raises:
        ResourceExhausted: RESOURCES_UNAVAILABLE, GPU_PROFILE_UNKNOWN.
    """
    limits, profile = options.limits, gpu_profile(resources, options)
    most_gpus = limits.gpus
    if profile is not None and profile.max_gpus is not None:
        most_gpus = min(most_gpus, profile.max_gpus)
    _check("gpus", resources.gpus, most_gpus)
    _check("memory_bytes", resources.memory_bytes, limits.memory_bytes)
    _check("scratch_bytes", resources.scratch_bytes, limits.scratch_bytes)


def _check(field: str, asked: int, most: int | None) -> None:
    if most is not None and asked > most:
        raise ResourceExhausted(
            "RESOURCES_UNAVAILABLE",
            f"the job asks for {asked} of resources.{field} and this server allows {most}; ask "
            "for less",
            field=f"resources.{field}",
            metadata={"asked": str(asked), "present": str(most)},
        )
