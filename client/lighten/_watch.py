"""What a watch knows, apart from how it is read: used by the sync and the asyncio client.

A watch opens a stream with ``request()``, hands every response to ``receive()``, and every end of
the stream to ``broken()``, which says how long to wait before the next one, or raises.
"""

import random
import time
from collections.abc import Callable

from lighten import errors
from lighten import v1 as pb
from lighten._errors import is_transient
from lighten._requests import TERMINAL_STATES

# Called with the error and the seconds until the next try, before a watch connects again.
OnReconnect = Callable[[errors.LightenError, float], None]

_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0


class StreamBroken(errors.Unavailable):
    """A stream ended before its time, without an error of its own."""


class Reconnect:
    """Backoff between streams, bounded by a time without contact and by a deadline.

    Args:
        patience: seconds without any message from the server before a watch gives up. Before the
            first message it gives up at once: the channel has tried a few times by then.
        timeout: seconds for the whole watch, or None.
    """

    def __init__(
        self,
        *,
        patience: float,
        timeout: float | None = None,
        on_reconnect: OnReconnect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience
        self._on_reconnect = on_reconnect
        self._clock = clock
        self._timeout = timeout
        self._deadline = None if timeout is None else clock() + timeout
        self._connected = False
        self._broken_since: float | None = None
        self._failures = 0

    def heard(self) -> None:
        """Note that a message came."""
        self._connected = True
        self._broken_since = None
        self._failures = 0

    def remaining(self) -> float | None:
        """Return the seconds left for the watch, at least 0; None: no limit."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - self._clock())

    def after(self, error: errors.LightenError) -> float:
        """Return the seconds to wait before the next stream; raise where there is no point."""
        if self.remaining() == 0.0:
            raise errors.DeadlineExceeded(
                f"not finished within {self._timeout:g} s; the job goes on", reason="WATCH_TIMEOUT"
            ) from error
        if not is_transient(error) or not self._connected:
            raise error
        now = self._clock()
        if self._broken_since is None:
            self._broken_since = now
        if now - self._broken_since > self._patience:
            raise error
        delay = self._next_delay()
        if self._on_reconnect is not None:
            self._on_reconnect(error, delay)
        return delay

    def _next_delay(self) -> float:
        longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        # Jitter, so that the watchers of a restarted server do not all return at once.
        delay = longest * random.uniform(0.5, 1.0)
        remaining = self.remaining()
        return delay if remaining is None else min(delay, remaining)


class JobWatchState:
    """Where the watch of one job stands: every event after a sequence once, in order."""

    def __init__(self, name: str, after_sequence: int, reconnect: Reconnect) -> None:
        self.name = name
        self.last_sequence = after_sequence
        self.snapshot: pb.WatchSnapshot | None = None
        self._finished = False
        self._reconnect = reconnect
        # The job had ended at the last snapshot.
        self._ended = False
        self._gap_at: int | None = None

    def finished(self) -> bool:
        """Whether the terminal event was seen."""
        return self._finished

    def request(self) -> pb.WatchJobRequest:
        return pb.WatchJobRequest(name=self.name, after_sequence=self.last_sequence)

    def timeout(self) -> float | None:
        return self._reconnect.remaining()

    def receive(self, response: pb.WatchJobResponse) -> pb.JobEvent | None:
        """Take one response; return the event when it is a new one."""
        self._reconnect.heard()
        if response.HasField("snapshot"):
            self.snapshot = response.snapshot
            self._ended = response.snapshot.job.state in TERMINAL_STATES
            return None
        event = response.event
        if event.sequence <= self.last_sequence:
            return None
        self._check_gap(event.sequence)
        self.last_sequence = event.sequence
        self._finished = event.state_changed.to in TERMINAL_STATES
        return event

    def ended(self) -> None:
        """Take the end of a stream without an error."""
        snapshot = self.snapshot
        if not self._ended or snapshot is None or self.last_sequence < snapshot.last_sequence:
            raise StreamBroken("the stream ended before the job", reason="STREAM_ENDED")
        # The terminal event was seen by an earlier watch.
        self._finished = True

    def broken(self, error: errors.LightenError) -> float:
        """Return the seconds to wait before the next stream, or raise."""
        return self._reconnect.after(error)

    def _check_gap(self, sequence: int) -> None:
        """Refuse missing events, unless retention has removed them from a finished job."""
        if sequence == self.last_sequence + 1 or self._ended:
            return
        if self._gap_at == sequence:
            raise errors.Internal(
                f"the server left out events {self.last_sequence + 1} to {sequence - 1} "
                f"of {self.name}",
                reason="EVENTS_MISSING",
            )
        # The job may have ended, and its log been trimmed, since this stream's snapshot.
        self._gap_at = sequence
        raise StreamBroken(f"a gap before event {sequence}", reason="EVENTS_MISSING")


class JobsWatchState:
    """Where the watch of many jobs stands. Every new stream tells all matches again."""

    def __init__(self, parent: str, where: str, reconnect: Reconnect) -> None:
        self._parent = parent
        self._where = where
        self._reconnect = reconnect
        self._known: set[str] = set()
        self._seen: set[str] = set()
        self._synced = False

    def request(self) -> pb.WatchJobsRequest:
        self._seen = set()
        self._synced = False
        return pb.WatchJobsRequest(parent=self._parent, filter=self._where)

    def timeout(self) -> float | None:
        return self._reconnect.remaining()

    def receive(self, response: pb.WatchJobsResponse) -> list[pb.WatchJobsResponse]:
        """Return what to tell: the response, after the removals that a reconnect missed."""
        self._reconnect.heard()
        match response.WhichOneof("payload"):
            case "job":
                self._known.add(response.job.name)
                self._seen.add(response.job.name)
            case "removed":
                self._known.discard(response.removed)
                self._seen.discard(response.removed)
            case "synced" if not self._synced:
                self._synced = True
                gone = sorted(self._known - self._seen)
                self._known &= self._seen
                return [*(pb.WatchJobsResponse(removed=name) for name in gone), response]
        return [response]

    def ended(self) -> None:
        raise StreamBroken("the server ended the stream", reason="STREAM_ENDED")

    def broken(self, error: errors.LightenError) -> float:
        return self._reconnect.after(error)
