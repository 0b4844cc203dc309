"""What SqlJobStore needs of a database."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine


@dataclass(frozen=True, slots=True)
class Backend:
    """Engines of one database, made ready by the file of its kind (``sqlite``)."""

    # Used by one thread; its transactions may write.
    writer: Engine
    # Used by `readers` threads, for single SELECTs.
    reader: Engine
    readers: int
    # Gives up what keeps others out.
    release: Callable[[], None]

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()
        self.release()
