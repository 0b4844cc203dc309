"""Counts what the events of a commit tell."""

from lighten import v1 as pb
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.ports import StoreChange
from lighten_service.jobs.record import TERMINAL_STATES, JobRecord


def observe(change: StoreChange, before: JobRecord | None, metrics: JobMetrics) -> None:
    """Count state changes and stages. ``before``: the job as it was last read."""
    for event in change.events:
        if event.HasField("state_changed"):
            _observe_state(event, before, metrics)
        elif event.HasField("stage_finished"):
            metrics.stage_finished(event.stage.kind, event.stage_finished.seconds)


def _observe_state(event: pb.JobEvent, before: JobRecord | None, metrics: JobMetrics) -> None:
    origin: pb.JobState.ValueType = getattr(event.state_changed, "from")
    to = event.state_changed.to
    if to == origin or before is None:
        return
    if origin == pb.JOB_STATE_QUEUED:
        waited = event.time.ToNanoseconds() - before.job.queue_time.ToNanoseconds()
        metrics.queue_left(max(waited / 1e9, 0.0))
    if to in TERMINAL_STATES:
        metrics.job_finished(to, before.job.techniques)
    if to == pb.JOB_STATE_FAILED:
        metrics.job_failed(event.state_changed.error)
