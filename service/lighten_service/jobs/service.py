"""The use cases of OptimizationService that read and change jobs, besides create and watch."""

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.filter_parser import parse_filter
from lighten_service.jobs.names import job_not_found, job_uri, logs_uri, parse_job, parse_parent
from lighten_service.jobs.pages import DEFAULT_PAGE_SIZE, page_position, page_token
from lighten_service.jobs.ports import Clock, JobStore, ObjectStore
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.transitions import request_cancel, state_name, transition
from lighten_service.jobs.views import view_of


class JobService:
    """Reads, cancels and deletes jobs. Another project's job is NotFound, like one that is not."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        *,
        storage_root: str,
        max_page_size: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._objects = objects
        self._root = storage_root
        self._max_page_size = max_page_size
        self._clock = clock

    async def get(self, request: pb.GetJobRequest) -> pb.Job:
        """Return one job. Raises NotFound."""
        name = parse_job(request.name)
        record = await self._store.get(name.project, name.job_id)
        return view_of(record.job, request.view or pb.JOB_VIEW_FULL)

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """Return one page of jobs, newest first. Raises InvalidArgument (filter, page token)."""
        project = parse_parent(request.parent)
        where = parse_filter(request.filter)
        before = page_position(
            request.page_token, parent=request.parent, filter_text=request.filter
        )
        size = min(request.page_size or DEFAULT_PAGE_SIZE, self._max_page_size)
        records = await self._store.list_jobs(project, where, limit=size + 1, before=before)
        page, more = records[:size], records[size:]
        token = ""
        if more:
            token = page_token(page[-1], parent=request.parent, filter_text=request.filter)
        view = request.view or pb.JOB_VIEW_BASIC
        return pb.ListJobsResponse(
            jobs=[view_of(record.job, view) for record in page], next_page_token=token
        )

    async def cancel(self, request: pb.CancelJobRequest) -> pb.Job:
        """Ask a job to stop; one that nothing was started for is CANCELLED at once.

        Raises:
            NotFound: there is no such job.
            FailedPrecondition: reason JOB_FINISHED, it succeeded or failed.
        """
        name = parse_job(request.name)
        now = self._clock.now()

        def decide(record: JobRecord) -> Change | None:
            if record.project != name.project:
                raise job_not_found(name.job_id)
            asked = request_cancel(record, reason=request.reason, now=now)
            if asked is None or _was_started(record):
                return asked
            ended = transition(
                asked.record, pb.JOB_STATE_CANCELLED, reason=asked.record.job.state_reason, now=now
            )
            return Change(ended.record, (*asked.events, *ended.events))

        return (await self._store.update(name.job_id, decide)).job

    async def delete(self, request: pb.DeleteJobRequest) -> None:
        """Delete a finished job and, unless they shall be kept, its artifacts.

        Raises:
            NotFound: there is no such job.
            FailedPrecondition: reason JOB_NOT_FINISHED.
        """
        name = parse_job(request.name)
        record = await self._store.get(name.project, name.job_id)
        if not record.finished:
            raise FailedPrecondition(
                "JOB_NOT_FINISHED",
                f"{name} is {state_name(record.job.state)}; cancel it, or wait for its end",
                metadata={"state": state_name(record.job.state)},
            )
        # Objects first: a row without objects can be deleted again, the reverse would leak.
        folder = logs_uri if request.keep_artifacts else job_uri
        await self._objects.delete_prefix(folder(self._root, name))
        await self._store.delete(name.job_id)


def _was_started(record: JobRecord) -> bool:
    return record.launch is not None and not record.launch.ended
