"""The token file: what it may say, and who a token is."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from lighten_service.api.principals import Role, read_principals
from lighten_service.jobs.errors import Unauthenticated
from lighten_service.settings import SettingsError

SHA = sha256(b"secret").hexdigest()
ROW = f'[[token]]\nname = "ci"\nsha256 = "{SHA}"\nproject = "vision"\nrole = "submitter"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "tokens.toml"
    path.write_text(text)
    return path


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_a_token_is_known_by_its_hash(tmp_path: Path) -> None:
    principal = read_principals(write(tmp_path, ROW)).identify("secret", now=0.0)
    assert (principal.name, principal.project, principal.role) == ("ci", "vision", Role.SUBMITTER)
    assert principal.may_see("vision")
    assert not principal.may_see("audio")
    for wrong in ("", "Secret", SHA):
        with pytest.raises(Unauthenticated) as caught:
            read_principals(write(tmp_path, ROW)).identify(wrong, now=0.0)
        assert caught.value.reason == "INVALID_TOKEN"


@pytest.mark.parametrize(
    ("expires", "last", "over"),
    [
        ("2027-06-30", "2027-06-30T23:59:59", "2027-07-01T00:00:00"),
        ("2027-06-30T12:00:00Z", "2027-06-30T11:59:59", "2027-06-30T12:00:00"),
        ("2027-06-30T12:00:00", "2027-06-30T11:59:59", "2027-06-30T12:00:00"),
        ("2027-06-30T14:00:00+02:00", "2027-06-30T11:59:59", "2027-06-30T12:00:00"),
    ],
)
def test_a_token_expires_at_the_instant_that_is_written(
    tmp_path: Path, expires: str, last: str, over: str
) -> None:
    principals = read_principals(write(tmp_path, f"{ROW}expires = {expires}\n"))
    assert principals.identify("secret", now=at(last)).name == "ci"
    with pytest.raises(Unauthenticated, match='"ci" has expired'):
        principals.identify("secret", now=at(over))


def test_the_last_day_of_all_is_one(tmp_path: Path) -> None:
    principals = read_principals(write(tmp_path, f"{ROW}expires = 9999-12-31\n"))
    assert principals.identify("secret", now=at("9999-12-31T23:59:59")).name == "ci"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[token]\n", "is no TOML"),
        (ROW.replace("submitter", "root"), "role"),
        (ROW.replace(SHA, "secret"), "sha256"),
        (ROW.replace("vision", "Vision"), "project"),
        (ROW + 'password = "x"\n', "password"),
        (ROW.replace('name = "ci"\n', ""), "name"),
        (ROW + ROW, "two tokens have the same name"),
        (ROW + ROW.replace("ci", "other"), "two tokens have the same sha256"),
        (ROW + 'expires = "soon"\n', "expires"),
        (ROW + 'expires = "2027-06-30"\n', "expires"),
        (ROW + "expires = 30\n", "expires"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong_and_nothing_that_it_holds(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=said) as caught:
        read_principals(path)
    assert str(path) in str(caught.value)
    assert SHA not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"auth\.tokens: cannot read .*none\.toml"):
        read_principals(tmp_path / "none.toml")
