"""What the Kubernetes executor counts; ``Metrics.kubernetes`` holds it."""

from collections.abc import Mapping
from time import monotonic
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Value of the label ``code`` where no answer came.
NO_ANSWER: Final = "none"
_REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class KubernetesMetrics:
    """One method for each thing that is counted, safe to call from any thread.

    Labels are bounded by their callers: ``verb`` is one of the API (``create``, ``list``,
    ``watch``...), ``resource`` a plural of it (``jobs``, ``pods``, ``secrets``...).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "lighten_kubernetes_requests",
            "Requests to the Kubernetes API, by verb, resource and HTTP code (none: no answer).",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "lighten_kubernetes_request_duration_seconds",
            "Time of a request to the Kubernetes API; of a watch, until it was open.",
            ["verb", "resource"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._restarts = Counter(
            "lighten_kubernetes_watch_restarts",
            "Watches that ended and were opened again, by resource and reason.",
            ["resource", "reason"],
            registry=registry,
        )
        self._silence = Gauge(
            "lighten_kubernetes_watch_silence_seconds",
            "Time since a watch was last heard, its usual end included.",
            ["resource"],
            registry=registry,
        )
        self._launches = Gauge(
            "lighten_kubernetes_launches",
            "Jobs of ours at the Kubernetes API, by state of the launch.",
            ["state"],
            registry=registry,
        )
        self._heard: dict[str, float] = {}

    def request_finished(self, verb: str, resource: str, code: int | None, seconds: float) -> None:
        """Count a request; ``code`` is its HTTP status, None where no answer came."""
        answer = NO_ANSWER if code is None else str(code)
        self._requests.labels(verb, resource, answer).inc()
        self._seconds.labels(verb, resource).observe(seconds)

    def watch_restarted(self, resource: str, reason: str) -> None:
        """Count a watch that ended: ``timeout``, ``gone`` (410), ``unavailable``, ``forbidden``.

        The server ends every watch after a while; that is ``timeout``.
        """
        self._restarts.labels(resource, reason).inc()

    def watch_heard(self, resource: str) -> None:
        """Note that a watch is alive: an event, a bookmark, or the end that the server gave it."""
        first = resource not in self._heard
        self._heard[resource] = monotonic()
        if first:
            gauge = self._silence.labels(resource)
            gauge.set_function(lambda: monotonic() - self._heard[resource])

    def launches_counted(self, counts: Mapping[str, int]) -> None:
        """Set the number of launches by ``LaunchState.value``; states left out become 0."""
        for state in ("waiting", "placed", "ended"):
            self._launches.labels(state).set(counts.get(state, 0))
