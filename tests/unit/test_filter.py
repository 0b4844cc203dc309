"""The filter language of ListJobs and WatchJobs."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.filter import Filter, Term
from lighten_service.jobs.filter_parser import parse_filter

JOB = pb.Job(
    state=pb.JOB_STATE_RUNNING,
    labels={"team": "vision", "a key": 'say "hi"'},
    techniques=["fold_batch_norms", "calibrate"],
    model_sha256="ab" * 32,
    create_time=Timestamp(seconds=1769817600),  # 2026-01-31T00:00:00Z
)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", ()),
        ("   ", ()),
        ("state = RUNNING", (Term("state", "=", "RUNNING"),)),
        ("state=JOB_STATE_RUNNING", (Term("state", "=", "RUNNING"),)),
        ('labels.team != "vision"', (Term("labels.team", "!=", "vision"),)),
        ('labels."a key" = "x"', (Term("labels.a key", "=", "x"),)),
        (
            'create_time >= "2026-01-31T01:00:00+01:00" AND technique = calibrate',
            (Term("create_time", ">=", "1769817600.0"), Term("technique", "=", "calibrate")),
        ),
        (r'labels.x = "a \"b\" \\"', (Term("labels.x", "=", 'a "b" \\'),)),
    ],
)
def test_what_is_read(text, terms):
    assert parse_filter(text) == Filter(terms)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("state", "FIELD OPERATOR VALUE"),
        ("state =", "FIELD OPERATOR VALUE"),
        ("state = = x", "value must follow"),
        ("state = SLEEPING", "QUEUED, STARTING"),
        ("state > RUNNING", "= and !="),
        ("color = red", "no field 'color'"),
        ("labels. = red", "no field"),
        ('create_time > "yesterday"', "2026-01-31"),
        ("state = RUNNING OR state = FAILED", "joined by AND"),
        ("state = RUNNING AND", "must follow AND"),
        ("state = RUNNING state = FAILED", "joined by AND"),
        ('labels.x = "open', "character 12"),
        ("state = RUNNING; DROP", "character 16"),
        (" AND ".join(["technique = x"] * 17), "at most 16"),
    ],
)
def test_what_is_refused(text, hint):
    with pytest.raises(InvalidArgument) as caught:
        parse_filter(text)
    assert caught.value.reason == "INVALID_FILTER"
    assert caught.value.field == "filter"
    assert hint in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("state = RUNNING", True),
        ("state != RUNNING", False),
        ("labels.team = vision", True),
        ("labels.team != vision", False),
        ("labels.missing != x", True),
        ("labels.missing = x", False),
        (r'labels."a key" = "say \"hi\""', True),
        ("technique = calibrate", True),
        ("technique != calibrate", False),
        (f"model_sha256 = {'ab' * 32}", True),
        ('create_time > "2026-01-31T00:00:00Z"', False),
        ('create_time >= "2026-01-31T00:00:00Z"', True),
        ('create_time < "2026-02-01" AND state = FAILED', False),
        ('create_time < "2026-02-01" AND state = RUNNING', True),
    ],
)
def test_what_matches(text, expected):
    assert parse_filter(text).matches(JOB) is expected
