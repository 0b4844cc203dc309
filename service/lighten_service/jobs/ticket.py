"""What a worker process is told about itself: one line of JSON, on its standard input or in a file.

The file is written by an executor that cannot reach the process, a Secret of Kubernetes say.
"""

import json
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

# Exit code of a worker that stopped before its end. Never 0: Kubernetes takes that for success.
EXIT_STOPPED = 3


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where to attach, as whom, and where to work.

    Attributes:
        server: gRPC target of WorkerService, for example ``127.0.0.1:8470``.
        job: Job.name.
        launch: number of the launch.
        token: launch token.
        scratch: folder for everything that the attempt writes; the executor deletes it.
        environment: variables that depend on the job, set before libraries use them.
        ca: certificates (PEM) to trust for ``server``, and beside the system's for signed URLs;
            empty: ``server`` speaks plain text.
        server_name: name in the server's certificate where it is not the one in ``server``.
        grace_seconds: from SIGTERM until the worker is killed; it ends by itself shortly before.
            0: it is not known.
    """

    server: str
    job: str
    launch: int
    token: str = field(repr=False)
    scratch: str
    environment: Mapping[str, str] = field(default_factory=dict)
    ca: str = field(default="", repr=False)
    server_name: str = ""
    grace_seconds: float = 0.0

    def to_line(self) -> bytes:
        """Return the ticket as one line of JSON with its newline."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Ticket":
        """Read what ``to_line`` wrote. Raises ValueError, without the token, on anything else."""
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError("no JSON object")
        told = {**_OPTIONAL, **told}
        wrong = [name for name, kind in _KINDS.items() if not isinstance(told.get(name), kind)]
        if wrong:
            raise ValueError(f"missing or of the wrong type: {', '.join(wrong)}")
        try:
            if told["ca"]:
                ssl.create_default_context(cadata=told["ca"])
        except ssl.SSLError as error:
            raise ValueError(f"ca is no certificate: {error}") from error
        # A newer server may tell more. Whether it takes this worker is decided at the hello.
        return cls(**{name: told[name] for name in _KINDS})


_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "server": str,
    "job": str,
    "launch": int,
    "token": str,
    "scratch": str,
    "environment": dict,
    "ca": str,
    "server_name": str,
    "grace_seconds": (int, float),
}
# An older server does not tell these.
_OPTIONAL: Final[Mapping[str, Any]] = {
    "environment": {},
    "ca": "",
    "server_name": "",
    "grace_seconds": 0.0,
}
