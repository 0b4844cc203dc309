"""The installed version of Lighten."""

from importlib.metadata import PackageNotFoundError, version


def client_version() -> str:
    """Return the version of the distribution, or "unknown" in a bare source tree."""
    try:
        return version("lighten")
    except PackageNotFoundError:
        return "unknown"
