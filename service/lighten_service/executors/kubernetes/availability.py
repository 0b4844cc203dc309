"""Whether the API server answers, and how long to leave it alone when it does not."""

import logging
import random
from time import monotonic

from lighten_service.executors.kubernetes.api import ApiError
from lighten_service.jobs.errors import LaunchDelayed

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class Backoff:
    """Pauses that double from ``first`` to ``longest`` seconds, each shortened by chance."""

    def __init__(self, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """Return the pause after one more failure."""
        pause = min(self._first * 2.0 ** min(self._failures, 16), self._longest)
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures = 0


class Availability:
    """One pause for all launches: thousands that wait must not hammer a server that is away."""

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._paused_until = 0.0
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """What is wrong, for a person; empty while the server answers."""
        return self._trouble

    def check(self) -> None:
        """Raise LaunchDelayed during a pause."""
        if monotonic() < self._paused_until:
            raise self.delayed()

    def delayed(self) -> LaunchDelayed:
        """Return the error that lets a job wait for the server."""
        return LaunchDelayed(
            "KUBERNETES_UNAVAILABLE", f"the Kubernetes API is out of reach ({self._trouble})"
        )

    def succeeded(self) -> None:
        """The server answered."""
        if self._trouble:
            _log.info("the Kubernetes API answers again")
        self._trouble, self._paused_until = "", 0.0
        self._backoff.reset()

    def failed(self, error: Exception) -> None:
        """The server did not answer, or is too busy: start a pause unless there is one."""
        if not self._trouble:
            _log.warning("the Kubernetes API is out of reach: %s", error)
        self._trouble = str(error)
        if monotonic() >= self._paused_until:
            asked = error.retry_after if isinstance(error, ApiError) else 0.0
            self._paused_until = monotonic() + max(self._backoff.next(), asked)
