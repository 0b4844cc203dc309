"""What a worker process is told about itself: one line of JSON on its standard input."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

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
    """

    server: str
    job: str
    launch: int
    token: str
    scratch: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the ticket as one line of JSON with its newline."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Ticket":
        """Read what ``to_line`` wrote. Raises ValueError on anything else."""
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"no ticket: {error}") from error
