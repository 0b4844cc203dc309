"""Runs a group of requests in one transaction, and one by one where one of them breaks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from lighten_service.jobs.errors import Internal, Unavailable
from lighten_service.jobs.ports import Clock, StoreChange
from lighten_service.store.batch import Batch, LostRace, Reads
from lighten_service.store.writes import Write
from lighten_service.telemetry.metrics import Metrics

# A request that met this many conflicts in a row gives up.
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Refused:
    """The outcome of a request that raised."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Written:
    """What a group came to: one outcome for each request, in their order."""

    outcomes: Sequence[object]
    changes: Sequence[StoreChange] = ()


class Committer:
    """Writes groups through one engine, from one thread."""

    def __init__(self, engine: Engine, clock: Clock, metrics: Metrics) -> None:
        self._engine = engine
        self._clock = clock
        self._metrics = metrics

    def run(self, writes: Sequence[Write[Any]]) -> Written:
        """Write a group durably. Raises nothing: failures are outcomes."""
        try:
            return self._commit(writes)
        except (OperationalError, InterfaceError) as error:
            # The database itself is ill: trying each request would only take longer.
            self._metrics.store_failed()
            return Written([Refused(unavailable(error)) for _ in writes])
        except Exception:  # One bad request must not fail those beside it.
            alone = [self._run_alone(write) for write in writes]
            return Written(
                [outcome for written in alone for outcome in written.outcomes],
                [change for written in alone for change in written.changes],
            )

    def _run_alone(self, write: Write[Any]) -> Written:
        conflict: Exception | None = None
        for _ in range(_ATTEMPTS):
            try:
                return self._commit([write])
            except (LostRace, IntegrityError) as error:
                # Another process was quicker; look at what it wrote.
                conflict = error
            except SQLAlchemyError as error:
                self._metrics.store_failed()
                return Written([Refused(unavailable(error))])
            except Exception as error:  # It belongs to the caller, on another thread.
                return Written([Refused(error)])
        refusal = Internal("STORE_CONFLICT", "the change contradicts what is stored")
        refusal.__cause__ = conflict
        return Written([Refused(refusal)])

    def _commit(self, writes: Sequence[Write[Any]]) -> Written:
        began = perf_counter()
        reads = Reads()
        for write in writes:
            write.plan(reads)
        with self._engine.begin() as connection:
            batch = Batch(connection, reads, self._clock.now())
            outcomes = [_outcome(write, batch) for write in writes]
            batch.flush()
        self._metrics.store_committed(len(writes), perf_counter() - began)
        self._metrics.events_appended(batch.events_by_kind)
        return Written(outcomes, batch.changes)


def _outcome(write: Write[Any], batch: Batch) -> object:
    try:
        return write.apply(batch)
    except (SQLAlchemyError, LostRace):
        raise
    except Exception as error:  # What a decision raises belongs to its caller.
        return Refused(error)


def unavailable(error: SQLAlchemyError) -> Unavailable:
    """Return a database error as the port has it."""
    cause = getattr(error, "orig", None) or error
    unavailable = Unavailable("STORE_UNAVAILABLE", f"the database failed: {cause}")
    unavailable.__cause__ = error
    return unavailable
