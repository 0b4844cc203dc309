"""The command line against a server with TLS and tokens, as its users have it: a configuration
file, a token file, a private CA."""

import asyncio
import io
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lighten
from lighten.cli.main import app
from lighten_service.api.principals import read_principals
from lighten_service.telemetry import logs
from tests.support.scripted_server import executor_factory
from tests.support.secured import Secured, secured
from tests.support.tokens import token_of


@pytest.fixture(autouse=True)
def no_settings_of_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in [key for key in os.environ if key.startswith("LIGHTEN_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))


@pytest.fixture(autouse=True)
def server_log(restore_logging: None) -> None:
    """Keeps the log of the server, which runs in this process, out of the command's output."""
    logs.configure(out=io.StringIO())


async def run(*arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
    """Run ``lighten`` beside the server; return stdout and stderr."""
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def configure(server: Secured, who: str) -> dict[str, str]:
    """Write a user's configuration with the token in a file; return the environment."""
    home = server.folder / "home"
    folder = home / "lighten"
    folder.mkdir(parents=True)
    token = folder / "token"
    token.write_text(f"{token_of(who)}\n")
    token.chmod(0o600)
    (folder / "config.toml").write_text(
        'profile = "gpu"\n[profiles.gpu]\n'
        f'target = "{server.plane.addresses.grpc}"\nproject = "vision"\n'
        f'token_file = "token"\nca = "{server.ca}"\n'
    )
    return {"XDG_CONFIG_HOME": str(home)}


async def test_a_job_from_upload_to_download_by_a_real_worker(tmp_path: Path) -> None:
    async with secured(tmp_path, make_executor=executor_factory()) as server:
        environment = configure(server, "submitter")
        spec = server.spec()
        spec.display_name = "events=3"
        document = tmp_path / "spec.yaml"
        text = lighten.dump_spec(spec)
        document.write_text(text.replace((tmp_path / "files").as_uri(), str(tmp_path / "files")))
        name = (await run("submit", str(document), **environment))[0].strip()
        assert name.startswith("projects/vision/jobs/")
        out, _ = await run("wait", name, "-o", "json", "--timeout", "60", **environment)
        assert json.loads(out)["state"] == "JOB_STATE_SUCCEEDED"
        await run("download", name, "--to", str(tmp_path / "got"), **environment)
        assert (tmp_path / "got" / "model.bin").read_bytes() == b"not really a model"
        _, said = await run("delete", name, code=5, **environment)
        assert "needs the role admin" in said
        assert token_of("submitter") not in said


async def test_flags_go_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    async with secured(tmp_path) as server:
        environment = configure(server, "viewer")
        assert (await run("list", **environment))[0] == "No jobs.\n"
        wrong = {**environment, "LIGHTEN_TOKEN": "wrong"}
        assert "does not know the token" in (await run("list", code=5, **wrong))[1]
        token = tmp_path / "home" / "lighten" / "token"
        assert (await run("--token-file", str(token), "list", **wrong))[0] == "No jobs.\n"
        token.chmod(0o644)
        out, said = await run("list", **environment)
        assert (out, said.startswith("Warning: ")) == ("No jobs.\n", True)
        assert "chmod 600" in said


async def test_a_token_is_not_sent_to_another_machine_in_plain_text() -> None:
    given = {"LIGHTEN_TOKEN": "secret-token", "LIGHTEN_TARGET": "203.0.113.1:8470"}
    _, said = await run("list", code=2, **given)
    assert "TOKEN_NEEDS_TLS" in said
    assert "secret-token" not in said


async def test_a_new_token_works_once_its_row_is_in_the_file(tmp_path: Path) -> None:
    out, said = await run("token", "create", "ci", "--project", "vision", "--days", "7")
    token = said.split()[-1]
    assert token.startswith("lighten_")
    assert token not in out
    file = tmp_path / "tokens.toml"
    file.write_text(out)
    principal = read_principals(file).identify(token, now=0.0)
    assert (principal.name, principal.project, principal.role.name) == ("ci", "vision", "SUBMITTER")


@pytest.mark.parametrize("arguments", [("a b", "--project", "x"), ("a", "--project", "X")])
async def test_a_token_that_no_file_could_hold_is_refused(arguments: tuple[str, ...]) -> None:
    _, said = await run("token", "create", *arguments, code=2)
    assert "INVALID_NAME" in said
