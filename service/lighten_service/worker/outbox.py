"""Events on their way to the server: numbered, kept until acknowledged, replayed after a break."""

from collections import deque
from threading import Lock

from lighten import v1 as pb


class Outbox:
    """Safe between the main thread, which adds, and the session's thread, which sends."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: deque[pb.WorkerEvent] = deque()
        self._last = 0
        self._sent = 0

    def add(self, event: pb.JobEvent) -> None:
        """Number an event and queue it. Its time is set by the caller."""
        with self._lock:
            self._last += 1
            self._events.append(pb.WorkerEvent(counter=self._last, event=event))

    @property
    def last(self) -> int:
        """Counter of the newest event."""
        return self._last

    def __len__(self) -> int:
        """Number of events that are not acknowledged."""
        return len(self._events)

    def acknowledge(self, counter: int) -> None:
        """Forget events up to ``counter``, which are stored."""
        with self._lock:
            while self._events and self._events[0].counter <= counter:
                self._events.popleft()
            self._sent = max(self._sent, counter)

    def rewind(self, counter: int) -> None:
        """A new stream begins: ``counter`` is stored, everything after it is sent again."""
        self.acknowledge(counter)
        with self._lock:
            self._sent = counter

    def take(self) -> pb.WorkerEvent | None:
        """Return the next event to send, or None."""
        with self._lock:
            # Sent and unacknowledged events stand first, without gaps.
            index = self._sent - self._events[0].counter + 1 if self._events else 0
            if index >= len(self._events):
                return None
            event = self._events[index]
            self._sent = event.counter
            return event
