"""Where a client finds its server and token."""

import warnings
from pathlib import Path

import pytest

import lighten
from lighten import config, errors

CONFIG = """
profile = "prod"

[profiles.prod]
target = "grpcs://gpu.example.org:8470"
project = "vision"
token_file = "prod.token"
ca = "ca.pem"

[profiles.lab]
target = "lab:8470"
token = "lab-token"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's configuration, and nothing in the environment."""
    for key in ("TARGET", "PROJECT", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY", "PROFILE"):
        monkeypatch.delenv(f"LIGHTEN_{key}", raising=False)
    monkeypatch.delenv("LIGHTEN_CLIENT_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "lighten"
    folder.mkdir()
    for name, text in (("config.toml", CONFIG), ("prod.token", "prod-token\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


def test_the_file_names_a_profile_and_files_lie_beside_it(home: Path) -> None:
    assert config.load() == config.Connection(
        target="grpcs://gpu.example.org:8470",
        project="vision",
        token="prod-token",
        ca=str(home / "ca.pem"),
    )
    assert config.load("lab").token == "lab-token"


def test_without_a_file_there_are_the_defaults(home: Path) -> None:
    (home / "config.toml").unlink()
    assert config.load() == config.Connection("127.0.0.1:8470", "default")


def test_given_goes_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTEN_PROJECT", "audio")
    monkeypatch.setenv("LIGHTEN_TOKEN", "mine")
    assert (config.load().project, config.load().token) == ("audio", "mine")
    assert config.load(project="text").project == "text"
    monkeypatch.setenv("LIGHTEN_PROFILE", "lab")
    assert config.load().target == "lab:8470"
    assert config.load("prod").target == "grpcs://gpu.example.org:8470"


def test_a_profile_s_token_goes_to_its_own_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load(target="evil:8470") == config.Connection("evil:8470")
    monkeypatch.setenv("LIGHTEN_TARGET", "evil:8470")
    assert config.load().token is None
    assert config.load(target="grpcs://gpu.example.org:8470").token == "prod-token"


def test_a_given_token_file_goes_over_the_profile_s_token(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("other-token")
    other.chmod(0o600)
    assert config.load("lab", token_file=str(other)).token == "other-token"


def test_an_empty_token_file_is_an_error(home: Path) -> None:
    (home / "prod.token").write_text("\n")
    with pytest.raises(errors.InvalidArgument, match=r"prod\.token is empty"):
        config.load()


def test_files_that_others_can_read_are_warned_about(home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.load()
    (home / "prod.token").chmod(0o640)
    with pytest.warns(config.ReadableByOthers, match=r"prod\.token"):
        config.load()
    (home / "config.toml").chmod(0o604)
    with pytest.warns(config.ReadableByOthers, match=r"config\.toml"):
        config.load("lab")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles.prod", "is no TOML"),
        ('[profiles.prod]\ntarget = "a:1"\ntokenfile = "x"', 'did you mean "token_file"'),
        ("[profiles.prod]\ntarget = 1", "has to be a text"),
        ('[profiles.prod]\nproject = "x"', "needs a target"),
        ('[profiles.lab]\ntarget = "a:1"', 'no profile "prod"; it has lab'),
        ('target = "a:1"', 'no setting "target"'),
        ('[profiles.prod]\ntarget = "a:1"\ntoken_file = "none"', "cannot read the token file"),
    ],
)
def test_a_broken_file_is_an_error_that_says_where(home: Path, text: str, said: str) -> None:
    (home / "config.toml").write_text(text)
    with pytest.raises(errors.InvalidArgument, match=said):
        config.load("prod")


def test_a_named_file_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTEN_CLIENT_CONFIG", "/nowhere/config.toml")
    with pytest.raises(errors.InvalidArgument, match=r"cannot read /nowhere/config\.toml"):
        config.load()


def test_no_representation_shows_a_token() -> None:
    assert "lab-token" not in repr(config.load("lab"))
    with lighten.Client("localhost:1", token="lab-token") as client:
        assert "lab-token" not in f"{client!r} {client._access!r}"


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("gpu:8470", {"token": "t"}, "TOKEN_NEEDS_TLS"),
        ("grpc://10.0.0.1:8470", {"token": "t"}, "TOKEN_NEEDS_TLS"),
        ("localhost.evil.org:8470", {"token": "t"}, "TOKEN_NEEDS_TLS"),
        ("localhost:8470", {"token": "two words"}, "INVALID_TOKEN"),
        ("localhost:8470", {"token": "line\n"}, "INVALID_TOKEN"),
        ("localhost:8470", {"ca": "/nowhere"}, "INVALID_CERTIFICATE"),
        ("localhost:8470", {"ca": __file__}, "INVALID_CERTIFICATE"),
        ("localhost:8470", {"cert": __file__}, "INVALID_CERTIFICATE"),
        ("localhost:8470", {"cert": __file__, "key": __file__}, "INVALID_CERTIFICATE"),
        ("grpc://localhost:8470", {"ca": __file__}, "INVALID_TARGET"),
        ("https://localhost:8470", {}, "INVALID_TARGET"),
        ("grpcs://", {}, "INVALID_TARGET"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_sent(
    target: str, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        lighten.Client(target, **options)
    assert caught.value.reason == reason


@pytest.mark.parametrize("target", ["127.0.0.1:1", "[::1]:1", "localhost:1", "grpcs://gpu:8470"])
def test_a_token_may_go_over_tls_and_to_this_machine(target: str) -> None:
    with lighten.Client(target, token="t") as client:
        assert client.target == target
