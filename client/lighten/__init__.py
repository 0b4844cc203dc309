"""Lighten's SDK: send models to a Lighten server and get them back smaller and faster.

    import lighten

    with lighten.Client("127.0.0.1:8470") as client:
        job = client.submit("spec.yaml")
        for event in client.watch(job.name):
            print(event)
        print(client.result(job.name).optimized)

``lighten.aio.Client`` is the same for asyncio. ``lighten.torch`` takes a module of your own; it
needs the extra ``torch``. Everything here is imported when it is first used, so that
``import lighten`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lighten.aio as aio
    import lighten.torch as torch  # noqa: F401  an extra, so not in __all__
    from lighten import config, errors, spec, v1
    from lighten._version import client_version
    from lighten.client import Client
    from lighten.errors import JobCancelled, JobFailed, LightenError
    from lighten.spec import dump_spec, load_spec

    __version__ = client_version()

__all__ = [
    "Client",
    "JobCancelled",
    "JobFailed",
    "LightenError",
    "__version__",
    "aio",
    "config",
    "dump_spec",
    "errors",
    "load_spec",
    "spec",
    "v1",
]

_MODULES = ("aio", "config", "errors", "spec", "v1")
# Needs an extra, so `import *` and dir() leave it alone.
_OPTIONAL = ("torch",)
_HOMES = {
    "Client": "lighten.client",
    "JobCancelled": "lighten.errors",
    "JobFailed": "lighten.errors",
    "LightenError": "lighten.errors",
    "dump_spec": "lighten.spec",
    "load_spec": "lighten.spec",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES or name in _OPTIONAL:
        return import_module(f"lighten.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return import_module("lighten._version").client_version()
    raise AttributeError(f"module 'lighten' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
