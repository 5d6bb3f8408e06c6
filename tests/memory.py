"""Measure the memory of Python's objects with the collector of cycles off: only unreferenced objects are freed."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEGABYTE = 2**20


@contextmanager
def growth() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the growth of the memory of Python's objects since the beginning, in megabytes."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] / MEGABYTE
    finally:
        tracemalloc.stop()
        gc.enable()
