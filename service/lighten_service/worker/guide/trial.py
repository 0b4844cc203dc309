"""The context of one candidate: its events carry its name, and its time can run out."""

import math
from dataclasses import dataclass
from time import monotonic

from lighten_service.worker.context import StepContext


class OutOfTime(BaseException):
    """The goal's time ended within a candidate, which is given up.

    Not an Exception, for the same reason as Cancelled.
    """


@dataclass
class TrialContext(StepContext):
    """A context that stops its candidate at ``deadline``, in seconds of `time.monotonic`."""

    deadline: float = math.inf

    def check(self) -> None:
        """Raise Cancelled when the job shall stop, OutOfTime when the candidate shall."""
        super().check()
        if monotonic() > self.deadline:
            raise OutOfTime
