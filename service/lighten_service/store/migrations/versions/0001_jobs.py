"""Jobs, their events, and secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("create_time", sa.Float(53), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("first_retained", sa.BigInteger, nullable=False),
        sa.Column("trim_due", sa.Float(53)),
        sa.Column("format_version", sa.Integer, nullable=False),
        sa.Column("job", sa.LargeBinary, nullable=False),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("bookkeeping", sa.Text, nullable=False),
        sa.UniqueConstraint("project", "request_id", name="jobs_request_id"),
    )
    op.create_index("jobs_newest", "jobs", ["project", "create_time", "job_id"])
    op.create_index("jobs_state", "jobs", ["state", "project"])
    op.create_index("jobs_trim_due", "jobs", ["trim_due"])
    op.create_table(
        "job_labels",
        _job_id(),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_index("job_labels_value", "job_labels", ["key", "value"])
    op.create_table(
        "job_techniques",
        _job_id(),
        sa.Column("technique", sa.String(64), primary_key=True),
    )
    op.create_index("job_techniques_technique", "job_techniques", ["technique"])
    op.create_table(
        "events",
        _job_id(),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )


def _job_id() -> "sa.Column[str]":
    return sa.Column(
        "job_id", sa.String(64), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True
    )
