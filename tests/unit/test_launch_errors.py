"""What callers read of each way in which a worker can end."""

import pytest

from lighten import v1 as pb
from lighten_service.jobs.launch_errors import launch_error
from lighten_service.jobs.ports import DISRUPTIONS, LaunchEnd, LaunchState, LaunchStatus

RESOURCE, SYSTEM = pb.ERROR_KIND_RESOURCE, pb.ERROR_KIND_SYSTEM
# Reason, kind, field, and what the message says that somebody can do.
READS = {
    LaunchEnd.OUT_OF_MEMORY: (
        "OUT_OF_MEMORY",
        RESOURCE,
        "resources.memory_bytes",
        "ask for more with resources.memory_bytes, or make batch_size smaller",
    ),
    LaunchEnd.OUT_OF_DISK: (
        "OUT_OF_DISK",
        RESOURCE,
        "resources.scratch_bytes",
        "ask for more with resources.scratch_bytes",
    ),
    LaunchEnd.OVERDUE: (
        "RUN_TIMEOUT",
        RESOURCE,
        "resources.run_timeout",
        "allow more with resources.run_timeout",
    ),
    LaunchEnd.DISRUPTED: ("WORKER_DISRUPTED", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.EVICTED: ("WORKER_EVICTED", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.PREEMPTED: ("WORKER_PREEMPTED", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.SUSPENDED: ("WORKER_SUSPENDED", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.DELETED: ("WORKER_DELETED", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.NODE_LOST: ("NODE_LOST", SYSTEM, "", "nothing needs to be done"),
    LaunchEnd.EXITED: ("WORKER_LOST", SYSTEM, "", "the operator of this server finds"),
    LaunchEnd.CRASHED: ("WORKER_LOST", SYSTEM, "", "the operator of this server finds"),
    LaunchEnd.STOPPED: ("WORKER_LOST", SYSTEM, "", "the operator of this server finds"),
    LaunchEnd.SILENT: ("WORKER_SILENT", SYSTEM, "", "the operator of this server finds"),
    LaunchEnd.START_FAILED: ("WORKER_START_FAILED", SYSTEM, "", "operator of this server can"),
    LaunchEnd.IMAGE_FAILED: ("IMAGE_NOT_PULLABLE", SYSTEM, "", "operator of this server can"),
    LaunchEnd.CONFIG_INVALID: ("WORKER_CONFIG_INVALID", SYSTEM, "", "operator of this server can"),
}


@pytest.mark.parametrize("end", LaunchEnd)
def test_every_end_names_the_fix(end: LaunchEnd) -> None:
    reason, kind, field, advice = READS[end]
    status = LaunchStatus(LaunchState.ENDED, end, "what was seen", (("exit_code", "9"),))
    error = launch_error(status).to_job_error()
    assert (error.reason, error.kind, error.field) == (reason, kind, field)
    # More of what ran out has to be asked for; the rest may go well unchanged.
    assert error.retryable == (kind == SYSTEM)
    assert error.message.startswith("what was seen; ")
    assert advice in error.message
    assert dict(error.metadata) == {"exit_code": "9"}


def test_disruptions_are_those_that_ask_for_nothing() -> None:
    assert {end for end in LaunchEnd if "nothing needs" in READS[end][3]} == DISRUPTIONS


def test_an_end_that_nobody_knows() -> None:
    error = launch_error(LaunchStatus(LaunchState.UNKNOWN))
    assert error.reason == "WORKER_LOST"
    assert error.message.startswith("the worker is gone; ")
