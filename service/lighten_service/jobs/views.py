"""How much of a job a caller gets."""

from lighten import v1 as pb

_FULL_ONLY = ("spec", "resolved_spec", "result")


def view_of(job: pb.Job, view: pb.JobView.ValueType) -> pb.Job:
    """Return the job itself for FULL, else a copy without spec, resolved_spec and result."""
    if view == pb.JOB_VIEW_FULL:
        return job
    basic = pb.Job()
    basic.CopyFrom(job)
    for name in _FULL_ONLY:
        basic.ClearField(name)  # type: ignore[arg-type]
    return basic
