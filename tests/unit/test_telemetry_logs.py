"""One line an event, with its context, whoever logs it."""

import io
import json
import logging

import pytest

from lighten_service.telemetry import logs

pytestmark = pytest.mark.usefixtures("restore_logging")


def test_json_lines_carry_context_and_level() -> None:
    out = io.StringIO()
    logs.configure(level="info", form="json", out=out)
    log = logs.get_logger("lighten_service.test")
    with logs.bind(request_id="r1", job="projects/default/jobs/a"):
        log.info("job stored", events=2)
        logging.getLogger("grpc").warning("retry %d", 3)
    log.debug("left out")
    log.info("outside")

    ours, library, outside = map(json.loads, out.getvalue().splitlines())
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "message": "job stored",
        "level": "info",
        "logger": "lighten_service.test",
        "request_id": "r1",
        "job": "projects/default/jobs/a",
        "events": 2,
    }
    assert (library["message"], library["logger"]) == ("retry 3", "grpc")
    assert library["request_id"] == "r1"
    assert "request_id" not in outside


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_leave_the_values_of_variables_out(form: logs.Format) -> None:
    out = io.StringIO()
    logs.configure(form=form, out=out)
    try:
        token = "".join(["sec", "ret"])
        raise ValueError(f"no good: {len(token)}")
    except ValueError:
        logs.get_logger("test").exception("failed")
    assert "ValueError: no good: 6" in out.getvalue()
    assert "Traceback" in out.getvalue()
    assert "secret" not in out.getvalue()
