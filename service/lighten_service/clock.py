"""The time."""

import time


class SystemClock:
    """The Clock port over the machine's clock."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()
