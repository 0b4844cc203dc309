"""What the store keeps of one job."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lighten import v1 as pb

TERMINAL_STATES = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worker instance that attached to a job. (launch, instance_id) names it for ever."""

    number: int
    launch: int
    instance_id: str
    # Counter of the newest WorkerEvent that is stored of this attempt.
    acked_event: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """What the executor started for a job, or was asked to start."""

    number: int
    # The executor's own reference, opaque to the domain; empty until the executor has answered.
    handle: str = ""
    # No worker of this launch can attach any more.
    ended: bool = False
    # No other worker may follow the one that it had, whatever the executor would do.
    spent: bool = False
    # Instance of its last worker that was lost before it attached; it does not come back.
    lost: str = ""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One row. ``job`` is the FULL view that callers get; the rest is bookkeeping.

    Records are values: a change makes a new one with ``dataclasses.replace`` and a *copy* of
    ``job``. ``revision`` is the store's compare-and-set counter. Times are Unix seconds.
    """

    project: str
    job_id: str
    job: pb.Job
    request_id: str = ""
    revision: int = 0
    inputs: tuple[pb.ResolvedInput, ...] = ()
    launch: Launch | None = None
    attempts: tuple[Attempt, ...] = ()
    # Do not launch before this time (backoff after a crash).
    not_before: float = 0.0
    # RUNNING time of earlier attempts, and when the current one began.
    run_seconds: float = 0.0
    running_since: float | None = None
    cancel_requested_at: float | None = None
    # Whole in object storage; the next attempt goes on from there.
    step_result: pb.StepResultRef | None = None
    # Last sign of life of the current attempt. Not kept current in the store at every heartbeat.
    last_heartbeat: float | None = None

    @property
    def create_time(self) -> float:
        """When the job was created, as the store orders and filters it."""
        return self.job.create_time.seconds + self.job.create_time.nanos / 1e9

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt, or None before the first."""
        return self.attempts[-1] if self.attempts else None

    @property
    def instances(self) -> frozenset[str]:
        """The workers of the newest launch that attached, or were lost before they could."""
        if self.launch is None:
            return frozenset()
        number = self.launch.number
        attached = {one.instance_id for one in self.attempts if one.launch == number}
        return frozenset(attached | {self.launch.lost}) - {""}

    @property
    def finished(self) -> bool:
        return self.job.state in TERMINAL_STATES


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction writes: the record as it shall be, and the events that tell of it.

    The store sets ``job``, ``sequence`` and, where it is absent, ``time`` of each event, and
    ``last_sequence``, ``update_time`` and ``revision`` of the record.
    """

    record: JobRecord
    events: Sequence[pb.JobEvent] = field(default=())
