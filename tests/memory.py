"""How much memory is held, with the collector of cycles at rest: only what nothing refers to any more is let go."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEGABYTE = 2**20


@contextmanager
def growth() -> Iterator[Callable[[], float]]:
    """Gives what tells by how many megabytes the memory of Python's objects has grown since the beginning."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] / MEGABYTE
    finally:
        tracemalloc.stop()
        gc.enable()
