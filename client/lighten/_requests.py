"""Requests as both clients send them."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from lighten import errors
from lighten import v1 as pb
from lighten.spec import load_spec

SpecLike = pb.JobSpec | Mapping[str, Any] | str | os.PathLike[str]

TERMINAL_STATES = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


def parent(project: str) -> str:
    return f"projects/{project}"


def job_name(project: str, name: str) -> str:
    """Return the full name; ``name`` may be the job's id alone."""
    if not name:
        raise errors.InvalidArgument("a job's name is empty", reason="INVALID_NAME")
    return name if "/" in name else f"{parent(project)}/jobs/{name}"


def create(
    project: str, spec: SpecLike, request_id: str | None, validate_only: bool
) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(
        parent=parent(project),
        spec=spec if isinstance(spec, pb.JobSpec) else load_spec(spec),
        request_id=request_id or str(uuid.uuid4()),
        validate_only=validate_only,
    )


def result_of(job: pb.Job) -> pb.JobResult:
    """Return the result of a finished job.

    Raises:
        JobFailed, JobCancelled: it has none.
    """
    if job.state == pb.JOB_STATE_FAILED:
        raise errors.JobFailed(job)
    if job.state == pb.JOB_STATE_CANCELLED:
        raise errors.JobCancelled(job)
    return job.result
