"""SIGTERM, heard at once whatever the main thread is doing."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from threading import Thread

from lighten_service.jobs.ticket import EXIT_STOPPED

_log = logging.getLogger(__name__)

# Left of the grace period when the process ends itself.
_MARGIN_SECONDS = 2.0


class Termination:
    """Stops the worker when it is asked to end, and ends it when it cannot stop in time.

    A Python handler would wait until the main thread is back from native code, minutes perhaps.
    The byte on the wake-up descriptor is written by the signal itself, and a thread reads it.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._seconds: float | None = None
        self._reader, self._writer = socket.socketpair()

    def listen(self) -> None:
        """Begin, in the main thread. Until there is something to stop, SIGTERM ends the process."""
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Without a handler there is no byte; and the first process of a container gets no signal.
        signal.signal(signal.SIGTERM, lambda *_: None)
        Thread(target=self._watch, name="termination", daemon=True).start()

    def hand_over(self, stop: Callable[[], None], *, grace_seconds: float) -> None:
        """From now on SIGTERM calls ``stop``, in a thread of its own.

        Args:
            stop: makes the main thread end soon.
            grace_seconds: when the process is killed; 0: it is not known.
        """
        if grace_seconds > 0:
            self._seconds = max(grace_seconds - _MARGIN_SECONDS, grace_seconds / 2)
        self._stop = stop

    def _watch(self) -> None:
        while signal.SIGTERM not in self._reader.recv(64):
            pass  # another signal
        if self._stop is None:
            os._exit(EXIT_STOPPED)
        self._stop()
        if self._seconds is not None:
            time.sleep(self._seconds)
            _log.warning("no safe point within %.1f s: ending all the same", self._seconds)
            os._exit(EXIT_STOPPED)
