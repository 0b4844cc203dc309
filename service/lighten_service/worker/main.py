"""The worker process: one job attempt, then it ends.

``python -m lighten_service.worker.main [--import MODULE]...`` imports the modules, which can take
seconds, and only then reads its ticket, one line of JSON, from standard input. Until then it
belongs to nobody: when the input closes without a line it ends.

``python -m lighten_service.worker.main --ticket FILE`` has its job from the start, in a pod say: it
attaches at once and loads what the job needs then.
"""

import argparse
import faulthandler
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lighten_service.jobs.errors import LightenError
from lighten_service.jobs.ticket import EXIT_STOPPED, Ticket
from lighten_service.worker.container import move_in
from lighten_service.worker.context import Cancelled
from lighten_service.worker.errors import to_job_error
from lighten_service.worker.reporter import EventReporter
from lighten_service.worker.session import Assignment, Session
from lighten_service.worker.stream import SessionOptions
from lighten_service.worker.termination import Termination

_log = logging.getLogger(__name__)

# Does the work and returns the SHA-256 of the manifest that it uploaded last. Raises LightenError,
# or Cancelled from Session.check.
Work = Callable[[Assignment, Session, EventReporter, Path], str]

# Logged once the imports are done: from here on the process is warm.
WAITING = "waiting for a job"

# Exit codes beside EXIT_STOPPED, and 2 for arguments that say nothing useful. 0 only once the end
# is stored.
EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_REFUSED = 4


def main(
    argv: Sequence[str] | None = None,
    work: Work | None = None,
    options: SessionOptions | None = None,
) -> int:
    """Run the process and return its exit code. ``work``: by default the pipeline.

    Raises:
        SystemExit: with code 2, the arguments or the ticket are not usable.
    """
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    termination = Termination()
    termination.listen()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.ticket and arguments.modules:
        parser.error("--import is for a worker that waits for its job, --ticket names one")
    try:
        ticket = _ticket_of_file(arguments.ticket) if arguments.ticket else _wait(arguments.modules)
    except (OSError, ValueError) as error:
        parser.error(f"no usable ticket in {arguments.ticket or 'the input'}: {error}")
    if ticket is None:
        return EXIT_STOPPED
    os.environ.update(ticket.environment)
    return run(ticket, work or _run_attempt, options, termination)


def run(
    ticket: Ticket, work: Work, options: SessionOptions | None, termination: Termination
) -> int:
    """Attach, work, and tell the server how it ended; return the exit code."""
    session = Session(ticket, options)
    termination.hand_over(session.disrupt, grace_seconds=ticket.grace_seconds)
    try:
        assignment = session.start()
        return _attempt(assignment, session, work, Path(ticket.scratch))
    except Cancelled as stop:
        _log.info("stopped: %s", stop)
        session.stopped()
        return EXIT_STOPPED
    except LightenError as error:
        # The server's last word, or its silence: there is nobody to tell.
        _log.error("detached: %s: %s", error.reason, error.message)
        return EXIT_REFUSED
    finally:
        session.close()


def _attempt(assignment: Assignment, session: Session, work: Work, scratch: Path) -> int:
    """Do the work and report its end. Raises Cancelled, or LightenError of the session's end."""
    reporter = EventReporter(session)
    _log.info("attempt %d of %s begins", assignment.attempt, assignment.job)
    try:
        manifest_sha256 = work(assignment, session, reporter, scratch)
    except Cancelled:
        reporter.close()
        raise
    except Exception as error:
        # What fails because the attempt was stopped is no failure.
        session.check()
        failure = to_job_error(error, reporter.stage)
        _log.info("failed: %s: %s", failure.reason, failure.message)
        reporter.close()
        session.fail(failure)
        return EXIT_FAILED
    reporter.close()
    session.finish(manifest_sha256)
    return EXIT_FINISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lighten worker", description="A worker of Lighten; started by its server."
    )
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    parser.add_argument("--ticket", type=Path, metavar="FILE")
    return parser


def _ticket_of_file(file: Path) -> Ticket:
    """Read a ticket and make the process ready for it. Raises OSError, or ValueError."""
    ticket = Ticket.from_line(file.read_bytes())
    move_in(Path(ticket.scratch))
    return ticket


def _wait(modules: Sequence[str]) -> Ticket | None:
    """Import modules, then wait for a job; None when there will be none. Raises ValueError."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            # The attempt that needs it will fail with the reason.
            _log.exception("cannot import %s early", module)
    _log.info(WAITING)
    line = sys.stdin.buffer.readline()
    return Ticket.from_line(line) if line else None


def _run_attempt(
    assignment: Assignment, session: Session, reporter: EventReporter, scratch: Path
) -> str:
    # Takes seconds; a worker that has its job is attached by now.
    from lighten_service.worker.pipeline import run_attempt

    return run_attempt(assignment, session, reporter, scratch)


if __name__ == "__main__":
    sys.exit(main())
