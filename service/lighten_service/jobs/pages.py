"""Page tokens of ListJobs: where the page before ended, bound to the question that it answered."""

import base64
import binascii
import hashlib
import json

from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.record import JobRecord

DEFAULT_PAGE_SIZE = 50

Position = tuple[float, str]


def page_token(last: JobRecord, *, parent: str, filter_text: str) -> str:
    """Return the token of the page after ``last``."""
    fields = [last.create_time, last.job_id, _question(parent, filter_text)]
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


def page_position(token: str, *, parent: str, filter_text: str) -> Position | None:
    """Return where a page begins; None for the first.

    Raises:
        InvalidArgument: reason INVALID_PAGE_TOKEN; it is no token, or one of another question.
    """
    if not token:
        return None
    try:
        created, job_id, question = json.loads(base64.urlsafe_b64decode(token.encode()))
        position = float(created), str(job_id)
    except (ValueError, TypeError, binascii.Error):
        question, position = None, (0.0, "")
    if question != _question(parent, filter_text):
        raise InvalidArgument(
            "INVALID_PAGE_TOKEN",
            "the page token belongs to another parent or filter; start again without one",
            field="page_token",
        )
    return position


def _question(parent: str, filter_text: str) -> str:
    return hashlib.sha256(json.dumps([parent, filter_text]).encode()).hexdigest()[:16]
