"""Between a JobRecord and its row."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.record import Attempt, JobRecord, Launch
from lighten_service.store.schema import FORMAT_VERSION

Values = dict[str, Any]


def row_of(record: JobRecord) -> Values:
    """Return the columns of ``jobs`` that follow from a record: all but ``inputs`` and
    ``first_retained``.
    """
    job = record.job
    return {
        "job_id": record.job_id,
        "project": record.project,
        "revision": record.revision,
        "state": job.state,
        "create_time": record.create_time,
        "priority": job.resolved_spec.resources.priority,
        "request_id": record.request_id or None,
        "model_sha256": job.model_sha256,
        "last_sequence": job.last_sequence,
        "trim_due": job.end_time.ToNanoseconds() / 1e9 if record.finished else None,
        "format_version": FORMAT_VERSION,
        "job": job.SerializeToString(),
        "bookkeeping": _bookkeeping(record),
    }


def inputs_column(inputs: Iterable[pb.ResolvedInput]) -> bytes:
    """Return the column ``inputs``."""
    return pb.ListInputsResponse(inputs=inputs).SerializeToString()


def whole_record_of(row: Row[Any]) -> JobRecord:
    """Return the record of a whole row of ``jobs``. Raises as ``record_of``."""
    record = record_of(row)
    return replace(record, inputs=tuple(pb.ListInputsResponse.FromString(row.inputs).inputs))


def record_of(row: Row[Any]) -> JobRecord:
    """Return the record of the ``LIGHT_COLUMNS`` of a row: its ``inputs`` are empty.

    Raises:
        FailedPrecondition: reason STORE_FORMAT_TOO_NEW, a newer Lighten wrote the row.
    """
    if row.format_version > FORMAT_VERSION:
        raise FailedPrecondition(
            "STORE_FORMAT_TOO_NEW",
            f"job {row.job_id} is stored in format {row.format_version}, this Lighten reads up "
            f"to {FORMAT_VERSION}: run the newer Lighten that wrote it",
            metadata={"job": row.job_id, "format_version": str(row.format_version)},
        )
    kept = json.loads(row.bookkeeping)
    launch = kept.pop("launch")
    attempts = kept.pop("attempts")
    step_result = kept.pop("step_result", None)
    return JobRecord(
        project=row.project,
        job_id=row.job_id,
        job=pb.Job.FromString(row.job),
        request_id=row.request_id or "",
        revision=row.revision,
        launch=Launch(**launch) if launch else None,
        attempts=tuple(Attempt(**attempt) for attempt in attempts),
        step_result=json_format.ParseDict(step_result, pb.StepResultRef()) if step_result else None,
        **kept,
    )


def _bookkeeping(record: JobRecord) -> str:
    return json.dumps(
        {
            "launch": asdict(record.launch) if record.launch else None,
            "attempts": [asdict(attempt) for attempt in record.attempts],
            "not_before": record.not_before,
            "run_seconds": record.run_seconds,
            "running_since": record.running_since,
            "cancel_requested_at": record.cancel_requested_at,
            "last_heartbeat": record.last_heartbeat,
            "step_result": _plain(record.step_result) if record.step_result else None,
        }
    )


def _plain(message: pb.StepResultRef) -> Values:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def event_row_of(job_id: str, event: pb.JobEvent) -> Values:
    """Return the row of ``events`` of an event that has its sequence."""
    return {
        "job_id": job_id,
        "sequence": event.sequence,
        "kind": event.WhichOneof("payload") or "",
        "payload": event.SerializeToString(),
    }


def label_rows_of(record: JobRecord) -> list[Values]:
    """Return the rows of ``job_labels``."""
    return [
        {"job_id": record.job_id, "key": key, "value": value}
        for key, value in record.job.labels.items()
    ]


def technique_rows_of(record: JobRecord) -> list[Values]:
    """Return the rows of ``job_techniques``: each technique of the plan once."""
    return [
        {"job_id": record.job_id, "technique": technique}
        for technique in dict.fromkeys(record.job.techniques)
    ]
