"""WatchJobs: every job that matches, then whatever becomes of them."""

import asyncio
from collections.abc import AsyncIterator

from lighten import v1 as pb
from lighten_service.jobs.filter import Filter
from lighten_service.jobs.filter_parser import parse_filter
from lighten_service.jobs.names import JobName, parse_parent
from lighten_service.jobs.ports import JobStore
from lighten_service.jobs.views import view_of
from lighten_service.jobs.watch import WatchHub

_PAGE = 200
# Changes of one job within this time are told once.
_COALESCE_SECONDS = 0.1


async def watch_jobs(
    store: JobStore, hub: WatchHub, request: pb.WatchJobsRequest
) -> AsyncIterator[pb.WatchJobsResponse]:
    """Yield every match, a SYNCED marker, then each change. States in between may be left out.

    Raises:
        InvalidArgument: the filter.
        Unavailable: the store is out of reach.
    """
    project = parse_parent(request.parent)
    where = parse_filter(request.filter)
    changes = hub.subscribe(project)
    shown: set[str] = set()
    try:
        async for job in _matches(store, project, where):
            shown.add(job.name)
            yield pb.WatchJobsResponse(job=job)
        yield pb.WatchJobsResponse(synced=pb.Synced())
        while True:
            job_ids = await changes.take()
            for job_id in job_ids:
                response = await _look(store, JobName(project, job_id), where, shown)
                if response is not None:
                    yield response
            await asyncio.sleep(_COALESCE_SECONDS)
    finally:
        hub.unsubscribe(changes)


async def _matches(store: JobStore, project: str, where: Filter) -> AsyncIterator[pb.Job]:
    before: tuple[float, str] | None = None
    while True:
        records = await store.list_jobs(project, where, limit=_PAGE, before=before)
        for record in records:
            yield view_of(record.job, pb.JOB_VIEW_BASIC)
        if len(records) < _PAGE:
            return
        before = records[-1].create_time, records[-1].job_id


async def _look(
    store: JobStore, name: JobName, where: Filter, shown: set[str]
) -> pb.WatchJobsResponse | None:
    record = await store.find(name.job_id)
    if record is not None and where.matches(record.job):
        shown.add(str(name))
        return pb.WatchJobsResponse(job=view_of(record.job, pb.JOB_VIEW_BASIC))
    if str(name) not in shown:
        return None
    shown.discard(str(name))
    return pb.WatchJobsResponse(removed=str(name))
