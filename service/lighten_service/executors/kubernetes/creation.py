"""Makes the Job and the Secret of a launch, once."""

import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any

from lighten import v1 as pb
from lighten_service.executors.kubernetes import manifest, naming
from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.executors.kubernetes.availability import Availability
from lighten_service.executors.kubernetes.options import KubernetesOptions
from lighten_service.executors.kubernetes.refusals import launch_error
from lighten_service.jobs.errors import (
    FailedPrecondition,
    LaunchDelayed,
    LightenError,
    PermissionDenied,
)
from lighten_service.jobs.ports import LaunchRequest

_log = logging.getLogger(__name__)

_CONFLICT = 409
_SAMPLE = LaunchRequest(
    project="default",
    job_id="rehearsal",
    name="projects/default/jobs/rehearsal",
    launch=1,
    token="",
    resources=pb.Resources(memory_bytes=1 << 30, scratch_bytes=1 << 30),
)

Json = dict[str, Any]


class Creator:
    """Names derive from the launch, so a repeat after a lost answer finds what is there."""

    def __init__(self, api: Api, options: KubernetesOptions, availability: Availability) -> None:
        self._api = api
        self._options = options
        self._availability = availability
        # By resource, on the monotonic clock.
        self._forbidden_since: dict[str, float] = {}

    async def job(self, request: LaunchRequest) -> Json:
        """Return the launch's Job, made or found.

        Raises:
            LaunchDelayed: KUBERNETES_UNAVAILABLE, QUOTA_EXCEEDED.
            LightenError: it can never be made, see ``refusals``.
        """
        made = await self._create("jobs", manifest.job(request, self._options))
        if made is not None:
            return made
        key = (request.job_id, request.launch)
        try:
            found = await self._api.get("jobs", naming.object_name(key))
        except (ApiError, ApiUnreachable) as error:
            # It went in between, or the server did: the next try sees.
            raise LaunchDelayed(
                "KUBERNETES_UNAVAILABLE", f"the Job of the launch cannot be read: {error}"
            ) from error
        if naming.key_of(found["metadata"], self._options.instance) != key:
            raise FailedPrecondition(
                "JOB_NAME_TAKEN",
                f"there is a Job {naming.object_name(key)} in the namespace that this server did "
                "not make",
            )
        return found

    async def secret(self, request: LaunchRequest, job_uid: str) -> None:
        """Make the launch's Secret unless it is there. Raises as ``job`` does, or CA_UNREADABLE."""
        try:
            body = manifest.secret(request, self._options, job_uid)
        except OSError as error:
            raise LaunchDelayed(
                "CA_UNREADABLE", f"the CA for workers cannot be read: {error}"
            ) from error
        await self._create("secrets", body)

    async def rehearse(self) -> None:
        """Let the server check what the settings and the template make of a Job.

        Raises:
            FailedPrecondition: POD_INVALID, it would refuse every launch.
        """
        body = manifest.job(_SAMPLE, self._options)
        try:
            await self._api.create("jobs", body, dryRun="All")
        except ApiUnreachable as error:
            self._availability.failed(error)
        except ApiError as error:
            if error.passing:
                self._availability.failed(error)
                return
            refused = launch_error(error, self._api.namespace)
            # A webhook that cannot rehearse says nothing of the Job.
            if refused.reason == "POD_INVALID" and "dry run" not in error.message:
                raise refused from error
            _log.error("no worker can be started: %s", refused.message)
        else:
            self._availability.succeeded()

    async def _create(self, resource: str, body: Mapping[str, Any]) -> Json | None:
        """Return what was made, None when something of the name is there."""
        self._availability.check()
        try:
            made = await self._api.create(resource, dict(body))
        except ApiUnreachable as error:
            self._availability.failed(error)
            raise self._availability.delayed() from error
        except ApiError as error:
            if error.passing:
                self._availability.failed(error)
                raise self._availability.delayed() from error
            if error.code == _CONFLICT:
                return None
            raise self._refusal(resource, error) from error
        self._availability.succeeded()
        self._forbidden_since.pop(resource, None)
        return made

    def _refusal(self, resource: str, error: ApiError) -> LightenError:
        refused = launch_error(error, self._api.namespace)
        if not isinstance(refused, PermissionDenied):
            return refused
        # A server that has just started forbids what it will allow once it has read its roles.
        since = self._forbidden_since.setdefault(resource, monotonic())
        if monotonic() - since < self._options.timeouts.forbidden:
            return LaunchDelayed(refused.reason, refused.message)
        return refused
