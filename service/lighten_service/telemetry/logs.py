"""Structured logs: one configuration for the server and its libraries.

Context variables (``bind``) put the request id and the job on every line that is written below
them, in whatever module or task.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger
from structlog.typing import Processor

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]


def configure(*, level: Level = "info", form: Format = "json", out: TextIO | None = None) -> None:
    """Send all logs, the standard library's too, to one stream (default: stderr).

    Calling it again replaces the configuration.
    """
    out = out or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(form, colors=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def get_logger(name: str) -> BoundLogger:
    """Return a logger; pass ``__name__``. Call it as ``log.info("job stored", job=name)``."""
    return cast(BoundLogger, structlog.get_logger(name))


@contextmanager
def bind(**values: str) -> Iterator[None]:
    """Put values (``request_id``, ``job``) on every line logged inside the block."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def _renderer(form: Format, *, colors: bool) -> list[Processor]:
    # Tracebacks without local variables: those may hold tokens and signed URLs.
    if form == "console":
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
