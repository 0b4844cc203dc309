"""The statements that read: lists, filters, events."""

import operator
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.filter import Filter, Term
from lighten_service.jobs.record import TERMINAL_STATES
from lighten_service.store.schema import LIGHT_COLUMNS, events, jobs, labels, techniques

_LIVE_STATES = sorted(
    int(state)
    for state in pb.JobState.values()
    if state not in TERMINAL_STATES and state != pb.JOB_STATE_UNSPECIFIED
)
_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def jobs_of(
    project: str, where: Filter, *, limit: int, before: tuple[float, str] | None
) -> Select[Any]:
    """Select a page of a project's jobs, newest first, without their inputs.

    Raises:
        InvalidArgument: reason INVALID_FILTER.
    """
    query = select(*LIGHT_COLUMNS).where(jobs.c.project == project, *map(_condition, where.terms))
    if before is not None:
        created, job_id = before
        query = query.where(
            or_(
                jobs.c.create_time < created,
                (jobs.c.create_time == created) & (jobs.c.job_id < job_id),
            )
        )
    return query.order_by(jobs.c.create_time.desc(), jobs.c.job_id.desc()).limit(limit)


def live_jobs() -> Select[Any]:
    """Select the jobs that are not finished, oldest first, without their inputs."""
    live = jobs.c.state.in_(_LIVE_STATES)
    return select(*LIGHT_COLUMNS).where(live).order_by(jobs.c.create_time, jobs.c.job_id)


def jobs_by_state() -> Select[Any]:
    """Select (state, number of jobs)."""
    return select(jobs.c.state, func.count()).group_by(jobs.c.state)


def events_of(job_id: str, after: int, limit: int) -> Select[Any]:
    """Select events of a job above a sequence, in order."""
    return (
        select(events.c.payload)
        .where(events.c.job_id == job_id, events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(limit)
    )


def _condition(term: Term) -> ColumnElement[bool]:
    if term.operator not in _COMPARE or (
        term.operator not in ("=", "!=") and term.field != "create_time"
    ):
        raise _invalid(term, "cannot be compared with this operator")
    compare = _COMPARE[term.operator]
    if term.field == "state":
        return compare(jobs.c.state, _state(term))
    if term.field == "model_sha256":
        return compare(jobs.c.model_sha256, term.value)
    if term.field == "create_time":
        return compare(jobs.c.create_time, _seconds(term))
    if term.field == "technique":
        has = techniques.c.technique == term.value
        found = exists().where(techniques.c.job_id == jobs.c.job_id, has)
    elif term.field.startswith("labels."):
        key = term.field.removeprefix("labels.")
        has = (labels.c.key == key) & (labels.c.value == term.value)
        found = exists().where(labels.c.job_id == jobs.c.job_id, has)
    else:
        raise _invalid(term, "is no field to filter by")
    return found if term.operator == "=" else ~found


def _state(term: Term) -> int:
    try:
        return int(pb.JobState.Value(f"JOB_STATE_{term.value}"))
    except ValueError:
        raise _invalid(term, f"has no value {term.value!r}") from None


def _seconds(term: Term) -> float:
    try:
        return float(term.value)
    except ValueError:
        raise _invalid(term, f"takes Unix seconds, not {term.value!r}") from None


def _invalid(term: Term, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FILTER", f"{term.field} {what}", field="filter")
