"""What a worker leaves out before events are numbered, and what it sends again."""

import pytest

from lighten import v1 as pb
from lighten_service.worker import reporter as module
from lighten_service.worker.outbox import Outbox
from lighten_service.worker.reporter import EventReporter

STEP = pb.Stage(kind=pb.Stage.KIND_STEP, step_id="calibrate")
OTHER = pb.Stage(kind=pb.Stage.KIND_EXPORT)


class RecordingSession:
    """Keeps what would go to the server."""

    def __init__(self) -> None:
        self.events: list[pb.JobEvent] = []
        self.backlog = 0

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def done(self) -> list[int]:
        return [event.progress.done for event in self.events if event.HasField("progress")]


@pytest.fixture
def session() -> RecordingSession:
    return RecordingSession()


@pytest.fixture
def reporter(session: RecordingSession, monkeypatch: pytest.MonkeyPatch) -> EventReporter:
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    clock[0] = 0.0
    return EventReporter(session)  # type: ignore[arg-type]


clock = [0.0]


def progress(done: int, total: int = 1000, stage: pb.Stage = STEP) -> pb.JobEvent:
    return pb.JobEvent(stage=stage, progress=pb.Progress(stage=stage, done=done, total=total))


def log(message: str) -> pb.JobEvent:
    return pb.JobEvent(stage=STEP, log=pb.LogLine(message=message))


def test_progress_goes_out_once_a_second(
    reporter: EventReporter, session: RecordingSession
) -> None:
    for tick in range(100):
        clock[0] = tick / 20
        reporter.send(progress(tick))
    assert session.done() == [0, 20, 40, 60, 80]


def test_last_progress_goes_out_with_what_follows(
    reporter: EventReporter, session: RecordingSession
) -> None:
    for done in range(5):
        reporter.send(progress(done))
    reporter.send(pb.JobEvent(stage=STEP, stage_finished=pb.StageFinished()))
    assert session.done() == [0, 4]
    assert session.events[-1].HasField("stage_finished")


def test_complete_progress_is_never_held(
    reporter: EventReporter, session: RecordingSession
) -> None:
    reporter.send(progress(1, total=2))
    reporter.send(progress(2, total=2))
    assert session.done() == [1, 2]


def test_stages_are_counted_apart(reporter: EventReporter, session: RecordingSession) -> None:
    reporter.send(progress(1))
    reporter.send(progress(1, stage=OTHER))
    assert len(session.done()) == 2
    assert reporter.stage == OTHER


def test_log_lines_are_bounded_and_counted(
    reporter: EventReporter, session: RecordingSession
) -> None:
    for number in range(module.MAX_LOG_LINES + 7):
        reporter.send(log(f"line {number}"))
    reporter.close()
    assert len(session.events) == module.MAX_LOG_LINES + 1
    assert session.events[-1].events_dropped == pb.EventsDropped(log_lines=7)


def test_long_lines_are_cut_between_characters(
    reporter: EventReporter, session: RecordingSession
) -> None:
    reporter.send(log("ä" * 1000 + "x"))
    assert session.events[0].log.message == "ä" * 512


def test_large_payloads_are_left_out_and_counted(
    reporter: EventReporter, session: RecordingSession
) -> None:
    warning = pb.Warning(reason="LARGE", message="x" * 20_000)
    reporter.send(pb.JobEvent(stage=STEP, warning=warning))
    reporter.close()
    assert [event.events_dropped.oversized for event in session.events] == [1]


def test_progress_waits_while_the_server_is_away_for_long(
    reporter: EventReporter, session: RecordingSession
) -> None:
    session.backlog = module.MAX_BACKLOG + 1
    for tick in range(10):
        clock[0] = float(tick)
        reporter.send(progress(tick))
    assert session.events == []


def test_outbox_replays_what_is_not_stored() -> None:
    outbox = Outbox()
    for number in range(1, 6):
        outbox.add(log(str(number)))
    assert [_counter(outbox) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert outbox.take() is None
    outbox.acknowledge(2)
    outbox.rewind(3)
    assert [_counter(outbox), _counter(outbox)] == [4, 5]
    outbox.add(log("6"))
    assert (_counter(outbox), outbox.last, len(outbox)) == (6, 6, 3)
    outbox.acknowledge(6)
    assert outbox.take() is None


def _counter(outbox: Outbox) -> int:
    event = outbox.take()
    assert event is not None
    return event.counter
