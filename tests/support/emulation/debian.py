"""Packages of this machine's distribution, unpacked for any architecture, without root."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

# A machine of its own: nothing installed, its lists and downloads in a folder. Sources, keys and
# proxies are those of this one; what it does after an update is not.
_CONFIGURATION = """
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
"""


class Unavailable(Exception):
    """An emulated CPU cannot be had on this machine; the message says why."""


def unpack(packages: Sequence[str], architecture: str, folder: Path) -> None:
    """Unpack packages, and all that they depend on, into a folder.

    Raises:
        Unavailable: there is no apt-get, or it has not got them.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unavailable(f"no apt-get here to download {', '.join(packages)} with")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="apt") as scratch:
        try:
            for package in _downloaded(packages, architecture, Path(scratch)):
                subprocess.run(["dpkg", "-x", package, folder], check=True)
        except subprocess.SubprocessError as error:
            raise Unavailable(f"{' '.join(packages)} could not be unpacked: {error}") from error


def _downloaded(packages: Sequence[str], architecture: str, state: Path) -> list[Path]:
    configuration = state / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=state, architecture=architecture))
    (state / "status").touch()
    for part in ("lists", "archives"):
        (state / part / "partial").mkdir(parents=True)
    # A source that nothing is needed of may fail: what is missing shows below.
    updated = _apt(configuration, "update")
    options = ["--yes", "--no-install-recommends", "--download-only"]
    installed = _apt(configuration, "install", *options, *packages)
    if installed.returncode:
        said = f"{updated.stdout}{installed.stdout}"[-2000:]
        raise Unavailable(f"apt-get has no {' '.join(packages)} for {architecture} here:\n{said}")
    return sorted((state / "archives").glob("*.deb"))


def _apt(configuration: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-q", "-c", configuration, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
