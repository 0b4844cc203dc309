"""Resource names, and where the objects of a project lie below the storage root."""

import re
from dataclasses import dataclass

from lighten_service.jobs.errors import InvalidArgument, NotFound

DEFAULT_PROJECT = "default"

_PROJECT = re.compile(r"projects/([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)")
_JOB = re.compile(rf"{_PROJECT.pattern}/jobs/([a-z0-9]{{26}})")
_SAFE_SEGMENT = re.compile(r"[A-Za-z0-9_+=@,()][A-Za-z0-9._+=@,()-]{0,254}")


@dataclass(frozen=True, slots=True)
class JobName:
    """``projects/{project}/jobs/{job_id}``."""

    project: str
    job_id: str

    def __str__(self) -> str:
        return f"projects/{self.project}/jobs/{self.job_id}"


def parse_parent(parent: str) -> str:
    """Return the project of ``projects/{project}``.

    Raises:
        InvalidArgument: reason INVALID_NAME.
    """
    match = _PROJECT.fullmatch(parent)
    if match is None:
        raise InvalidArgument(
            "INVALID_NAME",
            f'"{parent}" is no project; write projects/{{project}}, for example projects/default',
            field="parent",
        )
    return match[1]


def parse_job(name: str, field: str = "name") -> JobName:
    """Return the parts of ``projects/{project}/jobs/{job}``.

    Raises:
        InvalidArgument: reason INVALID_NAME.
    """
    match = _JOB.fullmatch(name)
    if match is None:
        raise InvalidArgument(
            "INVALID_NAME",
            f'"{name}" is no job; write projects/{{project}}/jobs/{{job}} as CreateJob returned it',
            field=field,
        )
    return JobName(match[1], match[2])


def job_not_found(job_id: str) -> NotFound:
    """The error for a job that does not exist, or not in the project of its name, or not for this
    caller: nobody learns which.
    """
    return NotFound(
        "JOB_NOT_FOUND", f"there is no job {job_id} in this project", metadata={"job": job_id}
    )


def project_uri(root: str, project: str) -> str:
    """Folder of everything that a project owns, with ``/`` at the end."""
    return f"{root.rstrip('/')}/projects/{project}/"


def upload_uri(root: str, project: str, upload_id: str) -> str:
    """Folder of one upload, with ``/`` at the end."""
    return f"{project_uri(root, project)}uploads/{upload_id}/"


def job_uri(root: str, name: JobName) -> str:
    """Folder of everything that a job wrote, with ``/`` at the end."""
    return f"{project_uri(root, name.project)}jobs/{name.job_id}/"


def attempt_uri(root: str, name: JobName, attempt: int) -> str:
    """Folder that one attempt writes, with ``/`` at the end."""
    return f"{job_uri(root, name)}attempts/{attempt}/"


def step_uri(root: str, name: JobName, attempt: int, step_id: str) -> str:
    """Folder of one step result, with ``/`` at the end."""
    return f"{attempt_uri(root, name, attempt)}steps/{step_id}/"


def logs_uri(root: str, name: JobName) -> str:
    """Folder of what workers of a job wrote to their logs, with ``/`` at the end."""
    return f"{job_uri(root, name)}logs/"


def worker_log_uri(root: str, name: JobName, launch: int, instance_id: str = "") -> str:
    """Last lines of a worker; ``instance_id`` where a launch may have several one by one."""
    instance = re.sub("[^A-Za-z0-9]+", "-", instance_id).strip("-")
    return f"{logs_uri(root, name)}launch-{launch}{'-' if instance else ''}{instance}.log"


def safe_path(path: str, field: str) -> str:
    """Return a relative path with ``/`` that stays in its folder on every storage.

    Parts are 1 to 255 letters, digits and ``. _ + = @ , ( ) -``, and begin with neither ``.`` nor
    ``-``, so that they mean the same in a path, a URI and an object's key.

    Raises:
        InvalidArgument: reason INVALID_PATH.
    """
    segments = path.split("/")
    if all(_SAFE_SEGMENT.fullmatch(segment) for segment in segments):
        return path
    raise InvalidArgument(
        "INVALID_PATH",
        f'"{path}" is no safe path; use letters, digits and ". _ + = @ , ( ) -", parts '
        'joined by "/", none of them empty or beginning with "." or "-"',
        field=field,
    )
