"""The tables, as the newest migration leaves them.

The columns of ``jobs`` are what is queried; the whole of a job is in ``job``, ``inputs`` and
``bookkeeping``, written and read by ``codec``.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# Newest migration (migrations/versions). A database with one that is not known is newer than this
# code.
REVISION = "0001"

# Version of the bytes in `jobs` and `events`, kept in each row of `jobs`. 2: `launch.spent` and
# `step_result` in the bookkeeping.
FORMAT_VERSION = 2

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("project", String(64), nullable=False),
    # Compare-and-set counter: 1 after the insert, one more with every change.
    Column("revision", BigInteger, nullable=False),
    # pb.JobState.
    Column("state", Integer, nullable=False),
    # Unix seconds.
    Column("create_time", Float(53), nullable=False),
    Column("priority", Integer, nullable=False),
    # NULL where the caller gave none.
    Column("request_id", String(128)),
    Column("model_sha256", String(64), nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    # No event from this sequence on was removed by retention.
    Column("first_retained", BigInteger, nullable=False),
    # End of the job in Unix seconds while retention has still to look at it, else NULL.
    Column("trim_due", Float(53)),
    Column("format_version", Integer, nullable=False),
    # pb.Job, FULL view.
    Column("job", LargeBinary, nullable=False),
    # pb.ListInputsResponse: the pinned inputs, written once.
    Column("inputs", LargeBinary, nullable=False),
    # JSON: the rest of JobRecord.
    Column("bookkeeping", Text, nullable=False),
    UniqueConstraint("project", "request_id", name="jobs_request_id"),
    Index("jobs_newest", "project", "create_time", "job_id"),
    Index("jobs_state", "state", "project"),
    Index("jobs_trim_due", "trim_due"),
)
# All but `inputs`, which may have megabytes, never change, and are needed by few.
LIGHT_COLUMNS = [column for column in jobs.c if column is not jobs.c.inputs]


def _job_id() -> Column[str]:
    return Column(
        "job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True
    )


labels = Table(
    "job_labels",
    metadata,
    _job_id(),
    Column("key", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
    Index("job_labels_value", "key", "value"),
)

techniques = Table(
    "job_techniques",
    metadata,
    _job_id(),
    Column("technique", String(64), primary_key=True),
    Index("job_techniques_technique", "technique"),
)

events = Table(
    "events",
    metadata,
    _job_id(),
    # 1, 2, 3... per job.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    # Field of JobEvent.payload, for retention.
    Column("kind", String(32), nullable=False),
    # pb.JobEvent.
    Column("payload", LargeBinary, nullable=False),
    # The events of a job lie beside each other, in order.
    sqlite_with_rowid=False,
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
