"""A server's token file for tests."""

from hashlib import sha256
from pathlib import Path

PROJECT = "vision"
# name: project, role, further lines. The token of each is `token-` and its name.
CALLERS = {
    "viewer": (PROJECT, "viewer", ""),
    "submitter": (PROJECT, "submitter", ""),
    "admin": (PROJECT, "admin", ""),
    "operator": ("*", "admin", ""),
    "foreigner": ("audio", "admin", ""),
    "expired": (PROJECT, "admin", "expires = 2020-01-31\n"),
}


def token_of(name: str) -> str:
    return f"token-{name}"


def token_file(path: Path, **others: tuple[str, str, str]) -> Path:
    """Write a file with the tokens of all CALLERS, and others like them."""
    rows = []
    for name, (project, role, more) in (CALLERS | others).items():
        digest = sha256(token_of(name).encode()).hexdigest()
        rows.append(
            f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\n'
            f'project = "{project}"\nrole = "{role}"\n{more}'
        )
    path.write_text("\n".join(rows))
    return path
