"""Where a client takes its server, project and token from, where the caller does not say.

``~/.config/lighten/config.toml`` (``LIGHTEN_CLIENT_CONFIG`` names another file):

    profile = "prod"                             # used where none is named

    [profiles.prod]
    target = "grpcs://lighten.example.org:8470"
    project = "vision"
    token_file = "prod.token"                    # or token = "..."
    ca = "ca.pem"                                # of a private CA
    cert = "me.pem"                              # where the server wants a client certificate
    key = "me.key"

Files are looked for beside the configuration. The environment goes over it: ``LIGHTEN_TARGET``,
``LIGHTEN_PROJECT``, ``LIGHTEN_TOKEN``, ``LIGHTEN_TOKEN_FILE``, ``LIGHTEN_CA``, ``LIGHTEN_CERT``,
``LIGHTEN_KEY``; ``LIGHTEN_PROFILE`` names a profile. What the caller gives goes over both.
"""

import os
import stat
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from lighten.errors import InvalidArgument

DEFAULT_TARGET: Final = "127.0.0.1:8470"
DEFAULT_PROJECT: Final = "default"

_PATHS: Final = ("token_file", "ca", "cert", "key")
_TOKENS: Final = frozenset({"token", "token_file"})
_KEYS: Final = ("target", "project", "token", *_PATHS)


@dataclass(frozen=True, slots=True)
class Connection:
    """A server and who calls it, as the clients' arguments of the same names."""

    target: str = DEFAULT_TARGET
    project: str = DEFAULT_PROJECT
    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class ReadableByOthers(UserWarning):
    """A file with a token can be read by other users of this machine."""


def load(
    profile: str | None = None,
    path: str | os.PathLike[str] | None = None,
    **given: str | None,
) -> Connection:
    """Return what is given, over the environment, over the configuration file, over defaults.

    A profile belongs to its server: when ``target`` comes from elsewhere and is another one,
    nothing of the profile is used, so that its token goes nowhere else.

    Args:
        profile: of the file; None: ``LIGHTEN_PROFILE``, or the one that the file names.
        path: the file; None: ``LIGHTEN_CLIENT_CONFIG``, or the one of this user.
        given: target, project, token, token_file, ca, cert, key.

    Raises:
        InvalidArgument: INVALID_CONFIG, a file cannot be read or has an unknown key;
            PROFILE_NOT_FOUND.
    """
    said = {key: value for key, value in given.items() if value is not None}
    values, over = _profile(profile, path), _layered(_environment(), said)
    ours = values.get("target")
    values = _layered(values, over) if over.get("target", ours) == ours else over
    file = values.pop("token_file", None)
    if file and "token" not in values:
        values["token"] = _token(Path(file).expanduser())
    return Connection(**values)


def _layered(low: dict[str, str], high: dict[str, str]) -> dict[str, str]:
    """Return both, the higher one first; a token and a file with one are the same setting."""
    if not _TOKENS.isdisjoint(high):
        low = {key: value for key, value in low.items() if key not in _TOKENS}
    return low | high


def _environment() -> dict[str, str]:
    values = {key: os.environ.get(f"LIGHTEN_{key.upper()}", "") for key in _KEYS}
    return {key: value for key, value in values.items() if value}


def _profile(name: str | None, path: str | os.PathLike[str] | None) -> dict[str, str]:
    """Return the values of the profile in use, none where there is no file."""
    named = path or os.environ.get("LIGHTEN_CLIENT_CONFIG")
    file = Path(named).expanduser() if named else _config_home() / "lighten" / "config.toml"
    name = name or os.environ.get("LIGHTEN_PROFILE")
    if not file.exists() and not named:
        if name:
            raise _not_found(name, file, {})
        return {}
    document = _read(file)
    profiles = document.get("profiles", {})
    name = name or document.get("profile")
    if name is None:
        return {}
    if not isinstance(profiles, dict) or not isinstance(profiles.get(name), dict):
        raise _not_found(name, file, profiles)
    return _checked(profiles[name], name, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise _invalid(f"{file} is no TOML: {error}") from error
    for key in document:
        _require_known(key, ("profile", "profiles"), file)
    return document


def _checked(profile: Mapping[str, Any], name: str, file: Path) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in profile.items():
        _require_known(key, _KEYS, file)
        if not isinstance(value, str) or not value:
            raise _invalid(f"{file}: profiles.{name}.{key} has to be a text")
        # An absolute path stays what it is.
        values[key] = str(file.parent / Path(value).expanduser()) if key in _PATHS else value
    if "target" not in values:
        raise _invalid(f"{file}: profiles.{name} needs a target")
    if "token" in values:
        _warn_if_readable(file)
    return values


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise _invalid(f"cannot read the token file {file}: {why}") from error
    if not token:
        raise _invalid(f"the token file {file} is empty")
    _warn_if_readable(file)
    return token


def _warn_if_readable(file: Path) -> None:
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"{file} holds a token and is open to other users; run: chmod 600 {file}"
        warnings.warn(message, ReadableByOthers, stacklevel=2)


def _require_known(key: str, known: tuple[str, ...], file: Path) -> None:
    if key not in known:
        near = get_close_matches(key, known, 1)
        hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"
        raise _invalid(f'{file}: there is no setting "{key}"; {hint}')


def _not_found(name: str, file: Path, profiles: Mapping[str, Any]) -> InvalidArgument:
    known = f"it has {', '.join(profiles)}" if profiles else "it has none"
    return InvalidArgument(f'{file} has no profile "{name}"; {known}', reason="PROFILE_NOT_FOUND")


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="INVALID_CONFIG")


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
