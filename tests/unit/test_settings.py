"""Settings come from one file and the environment, and what is wrong is named."""

from pathlib import Path

import pytest

from lighten_service.settings import SettingsError, load


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in ("LIGHTEN_CONFIG", "LIGHTEN_PORT", "LIGHTEN_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_need_no_configuration(tmp_path):
    settings = load()
    assert (settings.bind, settings.port) == ("127.0.0.1", 8470)
    assert (settings.http_port, settings.metrics_port) == (8471, 8472)
    assert settings.data_dir == tmp_path / "lighten"
    assert settings.database_url == f"sqlite:///{tmp_path}/lighten/lighten.db"
    assert settings.root_uri == f"file://{tmp_path}/lighten/objects"


def test_overrides_win_over_environment_over_file(tmp_path, monkeypatch):
    config = write(tmp_path / "c.toml", "port = 1\nhttp_port = 2\nmetrics_port = 3\n")
    monkeypatch.setenv("LIGHTEN_CONFIG", str(config))
    monkeypatch.setenv("LIGHTEN_HTTP_PORT", "20")
    monkeypatch.setenv("LIGHTEN_METRICS_PORT", "30")
    settings = load(overrides={"metrics_port": 300})
    assert (settings.port, settings.http_port, settings.metrics_port) == (1, 20, 300)


def test_nested_settings_merge(tmp_path, monkeypatch):
    config = write(
        tmp_path / "c.toml",
        '[s3]\nendpoint = "http://s3:9000/"\naccess_key = "key"\n'
        '[project_access]\ndefault = ["s3://models/"]\n',
    )
    monkeypatch.setenv("LIGHTEN_S3__SECRET_KEY", "hush")
    monkeypatch.setenv("LIGHTEN_FILE_ROOTS", f"{tmp_path}:/data")
    settings = load(config)
    assert settings.s3 is not None
    assert settings.s3.endpoint == "http://s3:9000"
    assert settings.s3.secret_key.get_secret_value() == "hush"
    assert "hush" not in repr(settings)
    assert settings.file_roots == (tmp_path, Path("/data"))
    assert settings.project_access == {"default": ("s3://models/",)}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1", ["prot (LIGHTEN_PROT)"]),
        ("port = 70000\nmetrics_port = -1", ["port (LIGHTEN_PORT)", "metrics_port"]),
        ('[s3]\nendpoint = "s3:9000"\naccess_key="a"\nsecret_key="b"', ["s3.endpoint", "http://"]),
        ('[s3]\naccess_key = "a"', ["s3.secret_key (LIGHTEN_S3__SECRET_KEY)"]),
        ('storage_root = "s3://bucket"', ["storage_root", "s3.access_key"]),
        ('storage_root = "/tmp"', ["storage_root", "file:///path"]),
        ('file_roots = ["data"]', ["file_roots", "not absolute"]),
        ('[project_access]\ndefault = ["s3://a"]', ["project_access", "s3://bucket/"]),
        ('[project_access]\nUPPER = ["s3://a/"]', ["project_access.UPPER"]),
        ("[limits]\nurl_expiry_seconds = 10", ["limits.url_expiry_seconds"]),
        ('log_level = "loud"', ["log_level"]),
        ("port = ", ["is no TOML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, names):
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path / "c.toml", text))
    for name in names:
        assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"no configuration file .*gone\.toml"):
        load(tmp_path / "gone.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_machines_are_kept_out_unless_told_in_so_many_words(host):
    with pytest.raises(SettingsError, match="neither TLS nor authentication yet"):
        load(overrides={"bind": host})
    assert load(overrides={"bind": host, "insecure_bind": True}).bind == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_fine(host):
    assert load(overrides={"bind": host}).bind == host
