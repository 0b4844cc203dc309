"""Commands against a real gRPC server: what they print, and how they exit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lighten import v1 as pb
from lighten.cli.main import app
from tests.support.sample_job import (
    FILES,
    REPORT,
    SPEC,
    events,
    finished_job,
    report_artifact,
    state,
)
from tests.support.scripted_service import JOB, ScriptedService

ID = JOB.rpartition("/")[2]


@pytest.fixture
def service(monkeypatch):
    with ScriptedService() as service:
        monkeypatch.setenv("LIGHTEN_TARGET", service.target)
        yield service


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def lighten(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exit_code == code, result.output
    return result


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def done(service: ScriptedService) -> None:
    service.add_job(finished_job(), events())
    service.store.files.update(FILES)


def failed(service: ScriptedService) -> None:
    error = pb.JobError(
        reason="OUT_OF_MEMORY",
        message="the worker needed more than 1 GB; ask for more",
        field="resources.memory_bytes",
        metadata={"limit_bytes": "1000"},
    )
    job = pb.Job(name=JOB, state=pb.JOB_STATE_FAILED, error=error)
    service.add_job(job, [state(pb.JOB_STATE_FAILED)])


# --- submit -------------------------------------------------------------------------------------


def test_submit_prints_the_name_alone(service, spec) -> None:
    assert lighten("submit", spec, "--label", "team=vision").stdout == f"{JOB}\n"
    assert service.requests[-1].spec.labels == {"team": "vision"}


def test_submit_json_is_one_document(service, spec) -> None:
    document = json.loads(lighten("submit", spec, "-o", "json").stdout)
    assert document["name"] == JOB
    assert document["spec"]["model"]["format"] == "MODEL_FORMAT_ONNX"


def test_validate_only_stores_nothing(service, spec) -> None:
    assert lighten("submit", spec, "--validate-only").stdout == "The spec is valid.\n"
    assert not service.jobs


def test_submit_uploads_local_files_and_says_so(service, tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"1")
    path = tmp_path / "spec.yaml"
    path.write_text(
        SPEC.replace('"s3://bucket/model.onnx"', "model.onnx").replace(
            '"s3://bucket/images/"', "./images"
        )
    )
    result = lighten("submit", path, "--output", "json")

    json.loads(result.stdout)
    assert "uploaded" in result.stderr
    assert "(1 B)" in result.stderr
    sent = service.requests[-1].spec
    assert sent.model.artifact.uri == "s3://bucket/uploads/u1/model.onnx"
    assert sent.model.artifact.sha256.startswith("9372c470eeadd5ec")
    assert sent.calibration.data.uri == "s3://bucket/uploads/u1/"


def test_submit_watch_json_is_a_stream_that_ends_with_the_job(service, spec) -> None:
    done(service)
    documents = lines(lighten("submit", spec, "--watch", "-o", "json").stdout)

    assert documents[0]["job"]["name"] == JOB
    assert [item["event"]["sequence"] for item in documents[1:-1]] == [
        str(number) for number in range(1, 14)
    ]
    assert documents[-1]["job"]["result"]["attempt"] == 1


def test_submit_watch_text_ends_with_the_table(service, spec) -> None:
    done(service)
    output = lighten("submit", spec, "--watch").stdout

    assert "SUCCEEDED" in output
    assert "optimized INT8" in output
    assert "Next: " in output


# --- jobs ---------------------------------------------------------------------------------------


def test_get_list_and_wait(service) -> None:
    done(service)
    assert "optimized INT8" in lighten("get", ID).stdout
    assert json.loads(lighten("get", ID, "-o", "json").stdout)["name"] == JOB
    assert ID in lighten("list").stdout
    assert json.loads(lighten("list", "-o", "json", "--limit", 1).stdout)[0]["name"] == JOB
    assert "optimized INT8" in lighten("wait", ID).stdout
    assert json.loads(lighten("wait", ID, "-o", "json").stdout)["name"] == JOB


def test_watch_resumes_after_a_sequence(service) -> None:
    done(service)
    documents = lines(lighten("watch", ID, "--after", 11, "-o", "json").stdout)
    assert [item["event"]["sequence"] for item in documents[:-1]] == ["12", "13"]


def test_cancel_and_delete(service) -> None:
    service.add_job(pb.Job(name=JOB, state=pb.JOB_STATE_QUEUED), [state(pb.JOB_STATE_QUEUED)])
    assert "is cancelled" in lighten("cancel", ID, "--reason", "no need").stdout
    assert service.requests[-1].reason == "no need"
    answer = json.loads(lighten("delete", ID, "--keep-artifacts", "-o", "json").stdout)
    assert answer == {"deleted": ID, "artifacts_kept": True}


def test_artifacts_download_and_upload(service, tmp_path) -> None:
    done(service)
    listed = json.loads(lighten("artifacts", ID, "-o", "json").stdout)
    assert [item["name"] for item in listed] == list(FILES)
    assert "model.qdq.onnx" in lighten("artifacts", ID).stdout

    paths = json.loads(lighten("download", ID, "--to", tmp_path, "-o", "json").stdout)
    assert [Path(path).read_bytes() for path in paths] == list(FILES.values())
    uploaded = json.loads(lighten("upload", paths[0], "-o", "json").stdout)
    assert uploaded["uri"] == "s3://bucket/uploads/u1/model.qdq.onnx"
    assert uploaded["sha256"] == listed[0]["sha256"]


def with_report(service: ScriptedService) -> None:
    done(service)
    service.store.files["report.html"] = REPORT
    service.jobs[JOB].result.artifacts.append(report_artifact())


def test_report_is_saved_and_opened_in_the_browser(service, tmp_path, monkeypatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    with_report(service)
    path = tmp_path / "new" / "mine.html"

    assert lighten("report", ID, "--to", path).stdout == f"{path}\n"
    assert path.read_bytes() == REPORT
    assert opened == [path.as_uri()]

    answer = json.loads(lighten("report", ID, "--no-open", "-o", "json").stdout)
    assert Path(answer["path"]).read_bytes() == REPORT
    assert not answer["opened"]
    assert len(opened) == 1


def test_report_without_a_browser_says_where_it_lies(service, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    with_report(service)
    result = lighten("report", ID, "--to", tmp_path / "mine.html")
    assert result.stdout == f"{tmp_path / 'mine.html'}\n"
    assert "No browser was found" in result.stderr


def test_report_that_is_not_there_or_cannot_be_saved(service, tmp_path) -> None:
    done(service)
    assert "outputs.report: false" in lighten("report", ID, code=3).stderr
    with_report(service)
    result = lighten("report", ID, "--no-open", "--to", tmp_path, code=5)
    assert f"cannot write {tmp_path}" in result.stderr


def test_capabilities_and_version(service) -> None:
    assert "calibrate" in lighten("capabilities").stdout
    answer = json.loads(lighten("capabilities", "-o", "json").stdout)
    assert answer["server_version"] == "1.2.3"
    assert json.loads(lighten("version", "-o", "json").stdout)["version"]


# --- errors -------------------------------------------------------------------------------------


def test_a_failed_job_exits_with_1_and_says_why(service) -> None:
    failed(service)
    for command in ("watch", "wait"):
        result = lighten(command, ID, code=1)
        assert "Error: the worker needed more than 1 GB" in result.stderr
        assert "field: resources.memory_bytes" in result.stderr
        assert "reason: OUT_OF_MEMORY, limit_bytes: 1000" in result.stderr
    document = json.loads(lighten("wait", ID, "-o", "json", code=1).stdout)
    assert document["error"]["reason"] == "OUT_OF_MEMORY"


def test_a_refused_spec_exits_with_2_and_names_the_fields(service, tmp_path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("model: {formt: onnx}\n")
    result = lighten("submit", path, code=2)
    assert "model.formt: unknown key; did you mean format? (line 1)" in result.stderr

    path.write_text("model: {}\n")
    result = lighten("submit", path, "-o", "json", code=2)
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["reason"] == "INVALID_FIELDS"
    assert error["violations"] == [{"field": "spec.model.format", "description": "must be set"}]
    lighten("submit", tmp_path / "nope.yaml", code=2)
    lighten("submit", path, "--label", "novalue", code=2)
    lighten("submit", path, "--no-such-option", code=2)


def test_other_exit_codes(service, monkeypatch) -> None:
    done(service)
    assert "there is no job" in lighten("get", "x", code=3).stderr
    assert "JOB_FINISHED" in lighten("cancel", ID, code=5).stderr
    lighten("wait", ID, "--target", "127.0.0.1:1", code=4)


def test_help_tells_the_exit_codes() -> None:
    assert "130" in lighten("--help").stdout


def test_the_server_part_is_named_when_it_is_missing(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = lighten("server", code=5)
    assert "pip install '.[server]'" in result.stderr


# --- the real thing -----------------------------------------------------------------------------


def test_ctrl_c_ends_a_watch_with_130_and_leaves_the_job_alone(service) -> None:
    service.add_job(
        pb.Job(name=JOB, state=pb.JOB_STATE_QUEUED), [state(pb.JOB_STATE_QUEUED, "no slot")]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "lighten.cli.main", "watch", ID],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert "QUEUED: no slot" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert out == ""
    assert err.strip() == "Interrupted."
    assert service.jobs[JOB].state == pb.JOB_STATE_QUEUED


def test_completion_is_there() -> None:
    environment = {**os.environ, "_LIGHTEN_COMPLETE": "complete_bash", "COMP_WORDS": "lighten ca"}
    done = subprocess.run(
        [Path(sys.executable).with_name("lighten")],
        env={**environment, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == {"cancel", "capabilities"}
