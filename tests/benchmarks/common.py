"""What the benchmarks on models share: their command line, a quiet process, the cost of a call."""

import argparse
import gc
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one call."""

    cpu: float
    wall: float


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows ``--threads``."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=1)
    return made


def settle(threads: int) -> None:
    """Set the threads and silence libraries; before they are imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # as the local executor does
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def machine(threads: int) -> str:
    """Return what else figures depend on, for the first line of a report."""
    return f"{threads} thread(s), {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"


def cost(run: Callable[[], object]) -> Cost:
    """Return what a call takes."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)
