"""Every setting of ``lighten-server``: environment ``LIGHTEN_…`` over one TOML file over defaults.

Nested settings are joined by ``__`` in the environment (``LIGHTEN_S3__REGION``) and are tables in
the file (``[s3]``).
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from lighten_service.settings.kubernetes import KubernetesSettings
from lighten_service.settings.section import Bytes, Port, Seconds, Section, http_url
from lighten_service.settings.security import (
    AuthSettings,
    TlsSettings,
    exposure,
    is_unspecified,
)

CONFIG_VARIABLE = "LIGHTEN_CONFIG"

_PREFIX = "LIGHTEN_"
_GIB = 1 << 30
_DAY = 86_400
_PROJECT_PATTERN = r"^([a-z]([a-z0-9-]{0,61}[a-z0-9])?|\*)$"

# A project, or "*" for every project.
ProjectKey = Annotated[str, Field(pattern=_PROJECT_PATTERN)]


class SettingsError(Exception):
    """The configuration cannot work; the message names each setting and what is wrong."""


class S3Settings(Section):
    """One S3 service. The host is part of a signature, hence three endpoints."""

    # URL that the server uses, for example "http://127.0.0.1:8333".
    endpoint: Annotated[str, Field(min_length=1)] = "https://s3.amazonaws.com"
    # URL in what callers get. Empty: `endpoint`.
    public_endpoint: str = ""
    # URL in what workers get. Empty: `endpoint`.
    worker_endpoint: str = ""
    region: str = "us-east-1"
    access_key: Annotated[str, Field(min_length=1)]
    secret_key: Annotated[SecretStr, Field(min_length=1)]
    # Of temporary credentials.
    session_token: SecretStr = SecretStr("")

    @field_validator("endpoint", "public_endpoint", "worker_endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return http_url(value)


class LocalExecutorSettings(Section):
    """Worker processes on this machine."""

    kind: Literal["local", "kubernetes"] = "local"
    # Jobs without a GPU that run at the same time. None: one for every 2 cores.
    cpu_slots: Annotated[int, Field(ge=0, le=1024)] | None = None
    # GPUs for jobs. None: all that the driver reports.
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    # Processes that have imported the worker's libraries before a job arrives.
    warm_workers: Annotated[int, Field(ge=0, le=64)] = 1


class JobDefaults(Section):
    """What JobSpec.resources gets where the caller says nothing."""

    memory_bytes: Annotated[int, Field(ge=256 << 20)] = 8 * _GIB
    scratch_bytes: Annotated[int, Field(ge=64 << 20)] = 20 * _GIB
    queue_timeout_seconds: Annotated[int, Field(ge=1)] = 7 * _DAY
    run_timeout_seconds: Annotated[int, Field(ge=1)] = _DAY


class LimitSettings(Section):
    """What one caller may ask for."""

    max_upload_bytes: Bytes = 20 * _GIB
    upload_expiry_seconds: Annotated[int, Field(ge=60)] = 7 * _DAY
    # At most a week, which is S3's own limit.
    url_expiry_seconds: Annotated[int, Field(ge=60, le=7 * _DAY)] = 3600
    max_page_size: Annotated[int, Field(ge=1, le=1000)] = 1000
    # Jobs of one project in QUEUED; 0: no limit.
    max_queued_jobs: Annotated[int, Field(ge=0)] = 10_000
    # Files in one input folder.
    max_input_files: Annotated[int, Field(ge=1)] = 200_000


class RetentionSettings(Section):
    """What is deleted with time."""

    # Progress and log events of finished jobs.
    event_seconds: Seconds = 30.0 * _DAY
    # Time between two sweeps (events, expired uploads).
    sweep_seconds: Seconds = 3600.0


class Settings(BaseSettings):
    """All settings, checked. Build it with ``load``."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    # Address of the ports. Beyond loopback only with `tls` and `auth`, or `insecure_bind`.
    bind: str = "127.0.0.1"
    # gRPC; 0: any free port.
    port: Port = 8470
    # Signed URLs of the local folder.
    http_port: Port = 8471
    # Prometheus and probes, always in plain text and open to whoever reaches it.
    metrics_port: Port = 8472
    # Address of the metrics port. Empty: `bind`.
    metrics_bind: str = ""
    # WorkerService by itself, without client certificates. None: `port`, or 8473 where workers
    # cannot use that one; see `workers_apart`.
    worker_port: Port | None = None
    # Signed URLs for workers of this machine, where `http_port` speaks TLS.
    worker_http_port: Port = 8474
    # "I know that TLS or authentication is missing, and that whoever reaches these ports can read
    # what goes over them, or run jobs and read results."
    insecure_bind: bool = False
    tls: TlsSettings | None = None
    auth: AuthSettings | None = None
    # Base of the signed URLs of the local folder, for callers and for workers. Empty: the HTTP
    # port at `bind`.
    public_url: str = ""
    worker_url: str = ""

    data_dir: Path = Field(default_factory=lambda: _data_home() / "lighten")
    # SQLAlchemy URL of the jobs. Empty: SQLite below `data_dir`.
    store_url: str = ""
    # URI of everything that Lighten writes. Empty: a folder below `data_dir`.
    storage_root: str = ""
    # Folders whose files a spec may name as `file://`. In the environment joined by `:`.
    file_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    # URIs below which a project may read, `s3://bucket/` or `s3://bucket/prefix/`, by project; `*`
    # stands for every project. What a project has uploaded it may always read.
    project_access: dict[ProjectKey, tuple[str, ...]] = {}

    s3: S3Settings | None = None
    executor: LocalExecutorSettings = LocalExecutorSettings()
    kubernetes: KubernetesSettings | None = None
    defaults: JobDefaults = JobDefaults()
    limits: LimitSettings = LimitSettings()
    retention: RetentionSettings = RetentionSettings()

    # From the start of a worker to its first word; in a cluster the pull of its image counts.
    # None: 300 s, in a cluster 1,800 s.
    start_timeout_seconds: Seconds | None = None
    # Time that running calls get when the server stops.
    drain_seconds: Seconds = 10.0
    # A worker that is silent for so long is looked after.
    heartbeat_timeout_seconds: Seconds = 30.0
    # From the request to cancel to the stop of the worker.
    cancel_grace_seconds: Seconds = 30.0
    # Time from SIGTERM to the kill of a worker that has to end.
    kill_grace_seconds: Seconds = 5.0
    # Pause before the attempt after the first crash; it doubles with each one.
    retry_pause_seconds: Seconds = 2.0
    log_format: Literal["json", "console"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - fixed by the library
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Overrides, then environment, then the file; no other source."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("file_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return (
            [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value
        )

    @field_validator("file_roots")
    @classmethod
    def _real_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in value:
            if not root.is_absolute():
                raise ValueError(f"{root} is not absolute")
        return tuple(root.resolve() for root in value)

    @field_validator("data_dir")
    @classmethod
    def _absolute_data_dir(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("public_url", "worker_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return http_url(value)

    @field_validator("storage_root")
    @classmethod
    def _is_storage(cls, value: str) -> str:
        if value and not value.startswith(("s3://", "file:///")):
            raise ValueError("write s3://bucket/prefix or file:///path")
        return value.rstrip("/")

    @field_validator("project_access")
    @classmethod
    def _are_prefixes(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for prefix in (prefix for prefixes in value.values() for prefix in prefixes):
            if not prefix.startswith("s3://") or not prefix.endswith("/") or prefix == "s3:///":
                raise ValueError(f'"{prefix}": write s3://bucket/ or s3://bucket/prefix/')
        return value

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        if not self.insecure_bind and (problem := exposure(self.bind, self.tls, self.auth)):
            raise ValueError(problem)
        if self.tls and is_unspecified(self.bind) and not (self.public_url or self.writes_to_s3):
            raise ValueError(
                f'bind = "{self.bind}" stands in no certificate: set public_url to the URL at '
                "which callers reach the HTTP port"
            )
        if self.writes_to_s3 and self.s3 is None:
            raise ValueError(
                "storage_root is on S3: set s3.access_key, s3.secret_key and s3.endpoint"
            )
        if not self.local_workers:
            self._check_cluster()
        return self

    def _check_cluster(self) -> None:
        if self.kubernetes is None:
            raise ValueError(
                'executor.kind = "kubernetes" needs kubernetes.namespace and kubernetes.image'
            )
        if is_unspecified(self.bind) and not self.kubernetes.server:
            raise ValueError(
                f'bind = "{self.bind}" is no address that a pod can call: set kubernetes.server '
                "to the host:port of this server as pods reach it"
            )
        if is_unspecified(self.bind) and not (self.worker_url or self.writes_to_s3):
            raise ValueError(
                f'bind = "{self.bind}" is no address that a pod can call: set worker_url to the '
                "URL of the HTTP port as pods reach it"
            )

    @property
    def local_workers(self) -> bool:
        """Whether workers are processes of this machine."""
        return self.executor.kind == "local"

    @property
    def workers_apart(self) -> bool:
        """Whether WorkerService has a port of its own: asked for, or because workers have neither
        a client certificate nor, on this machine, a name that stands in the server's.
        """
        tls = self.tls
        needed = tls is not None and (self.local_workers or tls.client_ca is not None)
        return needed or self.worker_port is not None

    @property
    def writes_to_s3(self) -> bool:
        return self.storage_root.startswith("s3://")

    @property
    def start_timeout(self) -> float:
        """``start_timeout_seconds`` with its default filled in."""
        if self.start_timeout_seconds is not None:
            return self.start_timeout_seconds
        return 300.0 if self.local_workers else 1800.0

    @property
    def database_url(self) -> str:
        return self.store_url or f"sqlite:///{self.data_dir / 'lighten.db'}"

    @property
    def root_uri(self) -> str:
        """``storage_root`` with its default filled in, without ``/`` at the end."""
        return self.storage_root or (self.data_dir / "objects").as_uri()


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the configuration: overrides, then environment, then file, then defaults.

    Args:
        config: TOML file; None: the one that ``LIGHTEN_CONFIG`` names, if it does.
        overrides: settings by name that win over everything.

    Raises:
        SettingsError: names every setting that is wrong, or the file that cannot be read.
    """
    path = config or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    if path is not None and not path.is_file():
        raise SettingsError(f"there is no configuration file {path}")
    file = {"model_config": SettingsConfigDict(toml_file=path)}
    reading: type[Settings] = type("Settings", (Settings,), file)
    try:
        return reading(**dict(overrides or {}))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        lines = [_describe(item["loc"], item["msg"]) for item in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def _describe(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    if not location:
        return text
    parts = [str(part) for part in location]
    return f"{'.'.join(parts)} ({_PREFIX}{'__'.join(parts).upper()}): {text}"


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
