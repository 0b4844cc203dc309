"""What a worker reads of its ticket, and what it says about one that is none."""

import json

import pytest

from lighten_service.jobs.ticket import Ticket

TICKET = Ticket(
    server="lighten:8470",
    job="projects/p/jobs/j",
    launch=2,
    token="secret",
    scratch="/scratch",
    environment={"A": "b"},
    server_name="lighten.example",
    grace_seconds=30,
)


def test_a_ticket_is_read_back() -> None:
    assert Ticket.from_line(TICKET.to_line()) == TICKET


def test_a_ticket_of_an_older_server_has_what_was_then() -> None:
    fields = json.loads(TICKET.to_line())
    for name in ("ca", "server_name", "grace_seconds", "environment"):
        del fields[name]
    ticket = Ticket.from_line(json.dumps(fields).encode())
    assert (ticket.ca, ticket.server_name, ticket.grace_seconds) == ("", "", 0.0)


def test_a_newer_server_may_tell_more() -> None:
    line = json.dumps({**json.loads(TICKET.to_line()), "colour": "blue"}).encode()
    assert Ticket.from_line(line) == TICKET


@pytest.mark.parametrize("name", ["server", "job", "launch", "token", "scratch"])
def test_what_is_missing_is_named(name: str) -> None:
    fields = json.loads(TICKET.to_line())
    del fields[name]
    with pytest.raises(ValueError, match=f"missing or of the wrong type: {name}$"):
        Ticket.from_line(json.dumps(fields).encode())


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"secret"'])
def test_anything_else_is_no_ticket(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the standard library's words
        Ticket.from_line(line)


def test_a_certificate_that_is_none_is_refused() -> None:
    fields = {**json.loads(TICKET.to_line()), "ca": "-----BEGIN CERTIFICATE-----\nno"}
    with pytest.raises(ValueError, match="ca is no certificate"):
        Ticket.from_line(json.dumps(fields).encode())


def test_the_token_stays_out_of_logs() -> None:
    assert "secret" not in repr(TICKET)
