"""Opens the store that a URL names."""

import asyncio

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.ports import Clock, JobStore
from lighten_service.store.backend import Backend
from lighten_service.store.commit import unavailable
from lighten_service.store.migrate import migrate
from lighten_service.store.sql import SqlJobStore
from lighten_service.store.sqlite import open_sqlite
from lighten_service.telemetry.metrics import Metrics

# One entry a database; the key is the scheme of its URL.
_BACKENDS = {"sqlite": open_sqlite}


async def open_store(url: str, *, clock: Clock, metrics: Metrics | None = None) -> JobStore:
    """Open a store, make or migrate its database, and return it ready.

    Args:
        url: ``sqlite:///relative/path.db`` or ``sqlite:////absolute/path.db``.
        clock: gives the times of events and changes.
        metrics: where commits and events are counted.

    Raises:
        InvalidArgument: reason INVALID_STORE_URL.
        FailedPrecondition: reason STORE_LOCKED (another server has it) or STORE_FORMAT_TOO_NEW.
        Unavailable: reason STORE_UNAVAILABLE.
    """
    backend = await asyncio.to_thread(_open, url)
    return SqlJobStore(backend, clock, metrics or Metrics())


def _open(url: str) -> Backend:
    parsed = _parse(url)
    backend = _BACKENDS[parsed.drivername](parsed)
    try:
        with backend.writer.begin() as connection:
            migrate(connection)
    except SQLAlchemyError as error:
        backend.close()
        raise unavailable(error) from error
    except BaseException:
        backend.close()
        raise
    return backend


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in _BACKENDS:
        raise InvalidArgument(
            "INVALID_STORE_URL",
            f"{url!r} is no URL of a store: give sqlite:///path/to/lighten.db",
        )
    return parsed
