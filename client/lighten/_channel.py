"""How the SDK connects: options of the channel, retries of calls that are safe to repeat."""

import json
from collections.abc import Sequence

import grpc
import grpc.aio

from lighten._access import Access, is_loopback
from lighten._version import client_version

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


def open_channel(access: Access) -> grpc.Channel:
    if access.credentials is None:
        return grpc.insecure_channel(access.address, options=_options(access))
    return grpc.secure_channel(access.address, access.credentials, options=_options(access))


def open_aio_channel(access: Access) -> grpc.aio.Channel:
    if access.credentials is None:
        return grpc.aio.insecure_channel(access.address, options=_options(access))
    return grpc.aio.secure_channel(access.address, access.credentials, options=_options(access))


def _options(access: Access) -> Sequence[tuple[str, str | int]]:
    return (
        ("grpc.primary_user_agent", f"lighten-python/{client_version()}"),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # A proxy has a loopback of its own, and in plain text it would read the token.
        ("grpc.enable_http_proxy", int(not is_loopback(access.address))),
        # Quick to come back after a restart of the server.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Finds a dead connection under a watch of a job that waits for hours.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
