"""What is SQLite's own: pragmas, who may open the file, and how a transaction begins."""

import fcntl
import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument, Unavailable
from lighten_service.store.backend import Backend

READERS = 4
_BUSY_MILLISECONDS = 5000


def open_sqlite(url: URL) -> Backend:
    """Open a database file for this process alone; make it, and its folder, where it is absent.

    Raises:
        InvalidArgument: reason INVALID_STORE_URL, the URL names no file.
        FailedPrecondition: reason STORE_LOCKED, another server has the file.
        Unavailable: reason STORE_UNAVAILABLE, the file cannot be made or written.
    """
    if not url.database or url.database == ":memory:":
        raise InvalidArgument(
            "INVALID_STORE_URL", "the store needs a file: sqlite:///path/to/lighten.db"
        )
    path = Path(url.database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It holds secrets. SQLite gives its side files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        lock = _FileLock(path)
    except OSError as error:
        raise Unavailable(
            "STORE_UNAVAILABLE", f"cannot open the database {path}: {error.strerror}"
        ) from error
    url = URL.create("sqlite", database=str(path))
    return Backend(
        writer=_engine(url, begin="BEGIN IMMEDIATE", connections=1),
        reader=_engine(url, begin=None, connections=READERS),
        readers=READERS,
        release=lock.release,
    )


def _engine(url: URL, *, begin: str | None, connections: int) -> Engine:
    engine = create_engine(url, pool_size=connections, max_overflow=0)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        # Transactions begin where `begin` below says, not where the driver guesses.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_MILLISECONDS}",
            "journal_mode = WAL",
            # A commit returns once it is on the disk: survives the loss of power, too.
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    if begin is not None:

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

    return engine


class _FileLock:
    """Holds ``<database>.lock`` until it is released or the process dies."""

    def __init__(self, database: Path) -> None:
        self._file = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode()
            os.close(self._file)
            raise FailedPrecondition(
                "STORE_LOCKED",
                f"process {holder} serves the database {database}: stop it, or give this server "
                "a database of its own",
                metadata={"process": holder},
            ) from None
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())

    def release(self) -> None:
        os.close(self._file)
