"""Turn signals into exceptions."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def raise_on_signals(error: BaseException, *signals: signal.Signals) -> Iterator[None]:
    """Raise the error when one of the signals arrives during the block, so that the block cleans up as it ends.

    Only the main thread may enter the block. The signals' earlier handlers are restored after it.
    """

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        raise error

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
