"""What the API server says to a new Job or Secret, as an error of Lighten."""

from lighten import v1 as pb
from lighten_service.executors.kubernetes.api import ApiError
from lighten_service.jobs.errors import (
    FailedPrecondition,
    LaunchDelayed,
    LightenError,
    PermissionDenied,
)

_BAD_REQUEST = 400
_FORBIDDEN = 403
_NOT_FOUND = 404
_UNPROCESSABLE = 422
_DENIALS = ("denied the request", "denied request", "violates PodSecurity")


def launch_error(error: ApiError, namespace: str) -> LightenError:
    """Return why a launch cannot start, for an error that no pause of the server's explains.

    A quota is waited for (``LaunchDelayed``). Everything else ends the job: only an operator can
    help, and a job that waits silently for one would be found too late. Its error is of kind
    SYSTEM, retryable where the same request can work once the operator has done so.
    """
    text = error.message
    if error.code == _FORBIDDEN and "exceeded quota" in text:
        return LaunchDelayed("QUOTA_EXCEEDED", f"the quota of the namespace is used up: {text}")
    if "NamespaceTerminating" in error.causes:
        return _operators(
            "NAMESPACE_TERMINATING", f'the namespace "{namespace}" is being deleted', retryable=True
        )
    if is_denial(text):
        return _operators(
            "ADMISSION_REFUSED",
            f"the cluster's admission policy refuses the worker: {text}",
            retryable=False,
        )
    if error.code == _NOT_FOUND:
        return _operators(
            "NAMESPACE_MISSING",
            f'there is no namespace "{namespace}" in the cluster: {text}',
            retryable=True,
        )
    if error.code == _FORBIDDEN:
        return PermissionDenied(
            "KUBERNETES_FORBIDDEN",
            f"this server may not start workers in the cluster: {text}; its operator has to grant "
            "it the role of the installation",
            kind=pb.ERROR_KIND_SYSTEM,
            retryable=True,
        )
    if error.code in (_BAD_REQUEST, _UNPROCESSABLE):
        return _operators(
            "POD_INVALID",
            f"the cluster takes the worker's pod for invalid: {text}; its operator has to correct "
            "the pod template or the settings",
            retryable=False,
        )
    return _operators(
        "KUBERNETES_REFUSED", f"the cluster refuses the worker: {text}", retryable=False
    )


def is_denial(text: str) -> bool:
    """Whether the API server says that a policy refuses an object, which it would do again."""
    return any(words in text for words in _DENIALS)


def _operators(reason: str, message: str, *, retryable: bool) -> FailedPrecondition:
    return FailedPrecondition(reason, message, kind=pb.ERROR_KIND_SYSTEM, retryable=retryable)
