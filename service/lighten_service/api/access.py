"""What each role may do: one row for every RPC of OptimizationService."""

from typing import Final, NamedTuple

from lighten_service.api.principals import Role


class Access(NamedTuple):
    """What a call needs.

    Attributes:
        role: the least that may call.
        resource: field of the request that names the project, or a job in it; empty: the call is
            about no project.
    """

    role: Role
    resource: str


ACCESS: Final[dict[str, Access]] = {
    "GetCapabilities": Access(Role.VIEWER, ""),
    "GetJob": Access(Role.VIEWER, "name"),
    "ListJobs": Access(Role.VIEWER, "parent"),
    "WatchJob": Access(Role.VIEWER, "name"),
    "WatchJobs": Access(Role.VIEWER, "parent"),
    "ListArtifacts": Access(Role.VIEWER, "parent"),
    "CreateDownloadUrl": Access(Role.VIEWER, "job"),
    "CreateUploadUrl": Access(Role.SUBMITTER, "parent"),
    "CreateJob": Access(Role.SUBMITTER, "parent"),
    "CancelJob": Access(Role.SUBMITTER, "name"),
    "DeleteJob": Access(Role.ADMIN, "name"),
}
