"""The worker process: one job attempt, then it ends.

``python -m lighten_service.worker.main [--import MODULE]...`` imports the modules, which can take
seconds, and only then reads its ticket, one line of JSON, from standard input. Until then it
belongs to nobody: when the input closes without a line it ends.
"""

import argparse
import faulthandler
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lighten_service.jobs.errors import LightenError
from lighten_service.jobs.ticket import EXIT_STOPPED, Ticket
from lighten_service.worker.context import Cancelled
from lighten_service.worker.errors import to_job_error
from lighten_service.worker.reporter import EventReporter
from lighten_service.worker.session import Assignment, Session
from lighten_service.worker.stream import SessionOptions

_log = logging.getLogger(__name__)

# Does the work and returns the SHA-256 of the manifest that it uploaded last. Raises LightenError,
# or Cancelled from Session.check.
Work = Callable[[Assignment, Session, EventReporter, Path], str]

# Logged once the imports are done: from here on the process is warm.
WAITING = "waiting for a job"

# Exit codes beside EXIT_STOPPED. 0 only once the end is stored.
EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_REFUSED = 4


def main(
    argv: Sequence[str] | None = None,
    work: Work | None = None,
    options: SessionOptions | None = None,
) -> int:
    """Run the process and return its exit code. ``work``: by default the pipeline."""
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parser = argparse.ArgumentParser(description="A worker of Lighten; started by its server.")
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    _import_early(parser.parse_args(argv).modules)
    _log.info(WAITING)
    line = sys.stdin.buffer.readline()
    if not line:
        return EXIT_STOPPED
    ticket = Ticket.from_line(line)
    os.environ.update(ticket.environment)
    return run(ticket, work or _pipeline(), options)


def run(ticket: Ticket, work: Work, options: SessionOptions | None = None) -> int:
    """Attach, work, and tell the server how it ended; return the exit code."""
    session = Session(ticket, options)
    signal.signal(signal.SIGTERM, lambda *_: session.disrupt())
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


def _import_early(modules: Sequence[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            # The attempt that needs it will fail with the reason.
            _log.exception("cannot import %s early", module)


def _pipeline() -> Work:
    from lighten_service.worker.pipeline import run_attempt

    return run_attempt


if __name__ == "__main__":
    sys.exit(main())
