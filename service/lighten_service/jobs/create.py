"""CreateJob: from a spec to a stored job."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice

from lighten import v1 as pb
from lighten_service.jobs.differences import differences
from lighten_service.jobs.errors import (
    AlreadyExists,
    InvalidArgument,
    LightenError,
    ResourceExhausted,
)
from lighten_service.jobs.goal_rules import check_budget
from lighten_service.jobs.ids import new_id
from lighten_service.jobs.names import JobName, parse_parent
from lighten_service.jobs.ports import Clock, JobStore
from lighten_service.jobs.record import JobRecord
from lighten_service.jobs.references import References
from lighten_service.jobs.resolve import ResourceDefaults, resolve
from lighten_service.jobs.spec_rules import check_spec
from lighten_service.jobs.transitions import timestamp, transition

_SHOWN_DIFFERENCES = 10
# What Job.techniques holds of a goal, whose techniques are yet to be found.
GOAL = "goal"

# Executor.admit: raises ResourceExhausted for what can never start here.
Admit = Callable[[pb.Resources], object]


@dataclass(frozen=True, slots=True)
class CreatePolicy:
    """What the operator allows.

    Attributes:
        gpu_profiles: names that a spec may ask for.
        max_queued: jobs of one project in QUEUED; 0: no limit.
    """

    defaults: ResourceDefaults
    gpu_profiles: Collection[str] = ()
    max_queued: int = 0


class JobCreator:
    """Checks a spec, resolves it, pins its inputs, and stores the job."""

    def __init__(
        self,
        store: JobStore,
        references: References,
        admit: Admit,
        policy: CreatePolicy,
        clock: Clock,
    ) -> None:
        self._store = store
        self._references = references
        self._admit = admit
        self._policy = policy
        self._clock = clock

    async def create(self, request: pb.CreateJobRequest) -> pb.Job:
        """Return the stored job; with ``validate_only`` the job as it would be, without a name.

        Raises:
            InvalidArgument: the spec cannot work; every field at fault is named.
            NotFound, PermissionDenied, Unavailable: what the spec names cannot be read.
            AlreadyExists: reason REQUEST_ID_REUSED, ``request_id`` came with another request.
            ResourceExhausted: too many jobs are queued.
        """
        project = parse_parent(request.parent)
        try:
            job, inputs = await self._prepare(project, request.spec)
        except LightenError:
            # A repeated request gets its job, though an input may be gone by now.
            stored = await self._find(project, request)
            if stored is None:
                raise
            return stored.job
        if request.validate_only:
            return job
        stored = await self._store_new(project, request, job, inputs)
        return stored.job

    async def _prepare(
        self, project: str, spec: pb.JobSpec
    ) -> tuple[pb.Job, tuple[pb.ResolvedInput, ...]]:
        check_spec(spec, self._policy.gpu_profiles)
        resolved = resolve(spec, self._policy.defaults)
        check_budget(resolved)
        self._check_resources(resolved.resources)
        return _new_job(spec, resolved), await self._references.pin(project, resolved)

    async def _find(self, project: str, request: pb.CreateJobRequest) -> JobRecord | None:
        if not request.request_id or request.validate_only:
            return None
        stored = await self._store.find_request(project, request.request_id)
        if stored is not None:
            _check_same(request, stored)
        return stored

    def _check_resources(self, resources: pb.Resources) -> None:
        try:
            self._admit(resources)
        except ResourceExhausted as error:
            raise InvalidArgument(
                error.reason,
                error.message,
                field=f"spec.{error.field or 'resources'}",
                metadata=error.metadata,
            ) from error

    async def _store_new(
        self,
        project: str,
        request: pb.CreateJobRequest,
        job: pb.Job,
        inputs: tuple[pb.ResolvedInput, ...],
    ) -> JobRecord:
        now = self._clock.now()
        name = JobName(project, new_id(now))
        job.name = str(name)
        job.create_time.CopyFrom(timestamp(now))
        record = JobRecord(project, name.job_id, job, request_id=request.request_id, inputs=inputs)
        change = transition(record, pb.JOB_STATE_QUEUED, reason="waiting to be started", now=now)
        stored = await self._store.create(
            change.record, change.events, max_queued=self._policy.max_queued
        )
        if stored.job_id != name.job_id:
            _check_same(request, stored)
        return stored


def _new_job(spec: pb.JobSpec, resolved: pb.JobSpec) -> pb.Job:
    names: list[str] = [step.WhichOneof("technique") or "" for step in resolved.plan.steps.steps]
    return pb.Job(
        display_name=spec.display_name,
        labels=spec.labels,
        techniques=[GOAL] if resolved.plan.HasField("goal") else names,
        model_sha256=spec.model.artifact.sha256,
        spec=spec,
        resolved_spec=resolved,
    )


def _check_same(request: pb.CreateJobRequest, stored: JobRecord) -> None:
    """Refuse a ``request_id`` that came with another spec before. Compares messages, not bytes."""
    if stored.job.spec == request.spec:
        return
    paths = list(islice(differences(stored.job.spec, request.spec), _SHOWN_DIFFERENCES))
    raise AlreadyExists(
        "REQUEST_ID_REUSED",
        f'request_id "{request.request_id}" made {stored.job.name} with another spec; these '
        f"fields differ: {', '.join(paths)}. Use a new id for a new job",
        field="request_id",
        metadata={"job": stored.job.name},
    )
