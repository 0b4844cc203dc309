"""Settings come from one file and the environment, and what is wrong is named."""

from pathlib import Path

import pytest

from lighten_service.settings import SettingsError, load
from lighten_service.settings.security import TlsSettings


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
    with pytest.raises(SettingsError, match=r"there is no \[tls\] and no \[auth\]"):
        load(overrides={"bind": host})
    assert load(overrides={"bind": host, "insecure_bind": True}).bind == host


TLS = {"cert": "/cert.pem", "key": "/key.pem"}
AUTH = {"tokens": "/tokens.toml"}


@pytest.mark.parametrize(("given", "missing"), [({"tls": TLS}, "auth"), ({"auth": AUTH}, "tls")])
def test_tls_or_tokens_alone_do_not_let_other_machines_in(given, missing):
    with pytest.raises(SettingsError, match=rf"there is no \[{missing}\]: set tls"):
        load(overrides={"bind": "10.0.0.1", **given})
    assert load(overrides={"bind": "10.0.0.1", "insecure_bind": True, **given})
    assert load(overrides=given).bind == "127.0.0.1"
    assert load(overrides={"bind": "10.0.0.1", "tls": TLS, "auth": AUTH}).bind == "10.0.0.1"


def test_urls_need_a_name_that_a_certificate_can_hold():
    everywhere = {"bind": "0.0.0.0", "tls": TLS, "auth": AUTH}
    with pytest.raises(SettingsError, match="set public_url"):
        load(overrides=everywhere)
    named = {**everywhere, "public_url": "https://lighten.example.org:8471"}
    assert load(overrides=named)
    cluster = {"namespace": "lighten", "image": "worker", "server": "lighten.svc:8473"}
    pods = {**named, "executor": {"kind": "kubernetes"}, "kubernetes": cluster}
    with pytest.raises(SettingsError, match="set worker_url"):
        load(overrides=pods)
    assert load(overrides={**pods, "worker_url": "https://lighten.svc:8471"})


@pytest.mark.parametrize(
    ("given", "apart"),
    [
        ({}, False),
        ({"tls": TLS}, True),
        ({"worker_port": 0}, True),
        ({"tls": TLS, "executor": {"kind": "kubernetes"}}, False),
        ({"tls": {**TLS, "client_ca": "/ca.pem"}, "executor": {"kind": "kubernetes"}}, True),
    ],
)
def test_workers_have_a_port_of_their_own_where_they_cannot_use_the_callers(given, apart):
    cluster = {"kubernetes": {"namespace": "lighten", "image": "worker"}}
    assert load(overrides={**cluster, **given}).workers_apart == apart


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_fine(host):
    assert load(overrides={"bind": host}).bind == host


def test_comments_in_any_language_are_no_part_of_what_workers_trust(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("# Autoridad de Certificación\n-----BEGIN CERTIFICATE-----\n", "utf-8")
    told = TlsSettings(cert=bundle, key=bundle).trusted()
    assert told.isascii()
    assert "BEGIN CERTIFICATE" in told


@pytest.mark.parametrize(
    ("given", "seconds"),
    [({}, 300), ({"executor": {"kind": "kubernetes"}}, 1800), ({"start_timeout_seconds": 5}, 5)],
)
def test_pods_have_longer_to_start(given, seconds):
    cluster = {"namespace": "lighten", "image": "worker", "server": "lighten:8473"}
    assert load(overrides={"kubernetes": cluster, **given}).start_timeout == seconds
