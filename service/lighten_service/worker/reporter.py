"""Thins out what an attempt has to tell, before events get their numbers."""

from time import monotonic, time_ns

from google.protobuf.timestamp_pb2 import Timestamp

from lighten import v1 as pb
from lighten_service.worker.session import Session

# Seconds between two progress events of one stage.
PROGRESS_INTERVAL = 1.0
MAX_LOG_LINES = 5000
MAX_LOG_BYTES = 1024
MAX_EVENT_BYTES = 16 * 1024
# Unacknowledged events from which on progress is left out: the server is away for long.
MAX_BACKLOG = 10_000


class EventReporter:
    """The ``Reporter`` of a real attempt. Use from one thread.

    Progress: at most one event a second for each stage, and the last. Log lines: 5,000 of 1 KiB.
    Anything else up to 16 KiB. What is left out is counted and told at the end.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._dropped = pb.EventsDropped()
        self._log_lines = 0
        # The newest progress that waits for its second, and when the last one went out.
        self._held: pb.JobEvent | None = None
        self._progress_at: dict[tuple[int, str], float] = {}
        self.stage: pb.Stage | None = None

    def send(self, event: pb.JobEvent) -> None:
        """Queue an event, or count it as dropped."""
        if not event.HasField("time"):
            event.time.CopyFrom(_now())
        if event.HasField("stage"):
            self.stage = event.stage
        kind = event.WhichOneof("payload")
        if kind == "progress":
            self._send_progress(event)
        elif kind == "log":
            self._send_log(event)
        else:
            self._release()
            self._put(event)

    def check(self) -> None:
        """Raise Cancelled when the attempt shall stop."""
        self._session.check()

    def close(self) -> None:
        """Send what is held, and what was dropped."""
        self._release()
        if self._dropped != pb.EventsDropped():
            self._session.send(pb.JobEvent(time=_now(), events_dropped=self._dropped))
            self._dropped = pb.EventsDropped()

    def _send_progress(self, event: pb.JobEvent) -> None:
        progress = event.progress
        key = (event.stage.kind, event.stage.step_id)
        if self._held is not None:
            if self._held.stage == event.stage:
                self._dropped.progress += 1
                self._held = None
            else:
                self._release()
        complete = 0 < progress.total <= progress.done
        due = monotonic() - self._progress_at.get(key, -PROGRESS_INTERVAL) >= PROGRESS_INTERVAL
        if self._session.backlog > MAX_BACKLOG or not (due or complete):
            self._held = event
            return
        self._progress_at[key] = monotonic()
        self._put(event)

    def _send_log(self, event: pb.JobEvent) -> None:
        line = event.log.message.encode()
        if self._log_lines >= MAX_LOG_LINES:
            self._dropped.log_lines += 1
            return
        self._log_lines += 1
        if len(line) > MAX_LOG_BYTES:
            self._dropped.oversized += 1
            event.log.message = line[:MAX_LOG_BYTES].decode(errors="ignore")
        self._release()
        self._put(event)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._put(held)

    def _put(self, event: pb.JobEvent) -> None:
        if event.ByteSize() > MAX_EVENT_BYTES:
            self._dropped.oversized += 1
            return
        self._session.send(event)


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time_ns())
    return stamp
