"""Brings a database to the newest schema at start."""

from pathlib import Path
from typing import cast

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.store.schema import REVISION, metadata

_MIGRATIONS = Path(__file__).parent / "migrations"

# Alembic's own table, as Alembic makes it.
_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, inside the transaction of ``connection``.

    An empty database gets the tables as they are now; Alembic, which takes as long to import as
    the rest of the store, runs when there is something to change.

    Raises:
        FailedPrecondition: reason STORE_FORMAT_TOO_NEW, a newer Lighten migrated this database.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        create(connection)
        return
    current = None
    if _version.name in tables:
        current = cast("str | None", connection.scalar(select(_version.c.version_num)))
    if current != REVISION:
        upgrade(connection, current)


def create(connection: Connection) -> None:
    """Make all tables in an empty database."""
    metadata.create_all(connection)
    _version.create(connection)
    connection.execute(insert(_version), {"version_num": REVISION})


def upgrade(connection: Connection, current: str | None) -> None:
    """Run the migrations after ``current`` (None: all of them)."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise FailedPrecondition(
            "STORE_FORMAT_TOO_NEW",
            f"the database has schema {current}, this Lighten knows up to {REVISION}: "
            "run the newer Lighten that migrated it, or restore a backup from before",
            metadata={"schema": current, "newest_known": REVISION},
        )
    command.upgrade(config, "head")
