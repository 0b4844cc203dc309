"""How the SDK connects: options of the channel, retries of calls that are safe to repeat."""

import json
from collections.abc import Sequence

import grpc
import grpc.aio

from lighten._version import client_version
from lighten.errors import InvalidArgument

_SERVICE = "lighten.v1.OptimizationService"
# All but DeleteJob, which would answer NOT_FOUND when the first try did its work. CreateJob is
# safe because of its request id; a stream is retried only until its first message.
_RETRIED = (
    "CreateJob",
    "GetJob",
    "ListJobs",
    "WatchJob",
    "WatchJobs",
    "CancelJob",
    "ListArtifacts",
    "CreateDownloadUrl",
    "CreateUploadUrl",
    "GetCapabilities",
)
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
# A FULL job holds its spec twice, and the server takes specs of 4 MiB.
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    _check(target)
    if credentials is None:
        return grpc.insecure_channel(target, options=_options())
    return grpc.secure_channel(target, credentials, options=_options())


def open_aio_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    _check(target)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_options())
    return grpc.aio.secure_channel(target, credentials, options=_options())


def _check(target: str) -> None:
    if not target.strip() or target != target.strip() or target.startswith(("http:", "https:")):
        raise InvalidArgument(
            f"{target!r} is not an address; write HOST:PORT, for example 127.0.0.1:8470",
            reason="INVALID_TARGET",
        )


def _options() -> Sequence[tuple[str, str | int]]:
    return (
        ("grpc.primary_user_agent", f"lighten-python/{client_version()}"),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # Quick to come back after a restart of the server.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Finds a dead connection under a watch of a job that waits for hours.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
