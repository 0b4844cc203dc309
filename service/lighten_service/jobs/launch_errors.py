"""What the end of a worker or of its launch is to the caller: a typed error that names the fix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lighten_service.jobs.errors import LightenError, ResourceExhausted, Unavailable
from lighten_service.jobs.ports import LaunchEnd, LaunchStatus

_GOES_ON: Final = "the job waits for its next worker; nothing needs to be done"
_CRASH: Final = (
    "a crash is tried again resources.max_retries times; the operator of this server finds the "
    "worker's log by the name of the job"
)
_OPERATOR: Final = "a fault of the installation, which the operator of this server can correct"


@dataclass(frozen=True, slots=True)
class _Meaning:
    """How an end reads: reason and advice; ``field`` where the caller can ask for more."""

    reason: str
    advice: str
    field: str = ""


_MEANINGS: Final[Mapping[LaunchEnd, _Meaning]] = {
    LaunchEnd.OUT_OF_MEMORY: _Meaning(
        "OUT_OF_MEMORY",
        "ask for more with resources.memory_bytes, or make batch_size smaller",
        "resources.memory_bytes",
    ),
    LaunchEnd.OUT_OF_DISK: _Meaning(
        "OUT_OF_DISK", "ask for more with resources.scratch_bytes", "resources.scratch_bytes"
    ),
    LaunchEnd.OVERDUE: _Meaning(
        "RUN_TIMEOUT", "allow more with resources.run_timeout", "resources.run_timeout"
    ),
    LaunchEnd.DISRUPTED: _Meaning("WORKER_DISRUPTED", _GOES_ON),
    LaunchEnd.EVICTED: _Meaning("WORKER_EVICTED", _GOES_ON),
    LaunchEnd.PREEMPTED: _Meaning("WORKER_PREEMPTED", _GOES_ON),
    LaunchEnd.SUSPENDED: _Meaning("WORKER_SUSPENDED", _GOES_ON),
    LaunchEnd.DELETED: _Meaning("WORKER_DELETED", _GOES_ON),
    LaunchEnd.NODE_LOST: _Meaning("NODE_LOST", _GOES_ON),
    LaunchEnd.EXITED: _Meaning("WORKER_LOST", _CRASH),
    LaunchEnd.CRASHED: _Meaning("WORKER_LOST", _CRASH),
    LaunchEnd.STOPPED: _Meaning("WORKER_LOST", _CRASH),
    LaunchEnd.SILENT: _Meaning("WORKER_SILENT", _CRASH),
    LaunchEnd.START_FAILED: _Meaning("WORKER_START_FAILED", _OPERATOR),
    LaunchEnd.IMAGE_FAILED: _Meaning("IMAGE_NOT_PULLABLE", _OPERATOR),
    LaunchEnd.CONFIG_INVALID: _Meaning("WORKER_CONFIG_INVALID", _OPERATOR),
}


def launch_error(status: LaunchStatus) -> LightenError:
    """Return why a worker or launch that ended before its job did is an error of the job.

    RESOURCE where the caller can ask for more, which is not retried; else SYSTEM and retryable.
    """
    # An executor that cannot know why it ended says no end at all.
    meaning = _MEANINGS[status.end or LaunchEnd.CRASHED]
    detail = status.detail or "the worker is gone"
    kind = ResourceExhausted if meaning.field else Unavailable
    return kind(
        meaning.reason,
        f"{detail}; {meaning.advice}",
        field=meaning.field,
        metadata=dict(status.metadata),
    )
