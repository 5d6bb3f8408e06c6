"""A separate collecting process that kills itself (-9) at one point of its work.

python -m tests.distill.dataset.collector ARCHIVE REDIS_URL POINT TIMES

It dies at the TIMES-th passing of POINT: just before or after a file's rename or the folder's sync, before or after
the acknowledgement or the trimming; ``never`` lets it finish. It prints ``archive`` each time a batch is on disk.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway.files
from distill.dataset.collect import collect
from distill.settings import DatasetSettings
from gateway.journal.reader import JournalReader
from gateway.settings import RedisSettings

POINTS: dict[str, tuple[Any, str]] = {
    "rename": (os, "replace"),
    "sync": (gateway.files, "sync_folder"),
    "ack": (JournalReader, "ack"),
    "trim": (JournalReader, "trim"),
}


def arm(owner: Any, name: str, *, after: bool, times: int) -> None:
    """Kill this process at the call's ``times``-th execution, before or after its work."""
    original: Callable[..., Any] = getattr(owner, name)
    left = times

    def passed(*, at_end: bool) -> None:
        nonlocal left
        if at_end == after:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def mortal_async(*args: Any, **kwargs: Any) -> Any:
            passed(at_end=False)
            result = await original(*args, **kwargs)
            passed(at_end=True)
            return result

        setattr(owner, name, mortal_async)
    else:

        @functools.wraps(original)
        def mortal(*args: Any, **kwargs: Any) -> Any:
            passed(at_end=False)
            result = original(*args, **kwargs)
            passed(at_end=True)
            return result

        setattr(owner, name, mortal)


def main(archive: str, url: str, point: str, times: str) -> None:
    """Collect, and die at the given point."""
    if point != "never":
        when, _, what = point.partition(" ")
        arm(*POINTS[what], after=when == "after", times=int(times))
    settings = DatasetSettings(archive_dir=Path(archive))

    def tell(_: object) -> None:
        sys.stderr.write("archived\n")
        sys.stderr.flush()

    asyncio.run(collect(RedisSettings(url=url), settings, batch_records=20, flush_bytes=1, on_archived=tell))


if __name__ == "__main__":
    main(*sys.argv[1:])
