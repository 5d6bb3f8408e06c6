"""An operator's own function over every text of a record, before the journal has it.

It may take long, hang or fail: it runs in threads of its own, within a time, and whatever goes wrong keeps all content
out of the record, as ``store: false`` does. The answer to the caller is not touched.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import structlog

from gateway.errors import SettingsError
from gateway.journal.record import CompletionRecord, FeedbackRecord, Record, without_content

T = TypeVar("T")
Redact = Callable[[str], str]

_THREADS = 4
# Values of these are the protocol's words or identifiers, and what reads the record depends on them.
_NOT_TEXT = frozenset({"role", "type", "id", "tool_call_id", "finish_reason", "error"})

_log = structlog.get_logger()


class Redaction:
    """Applies the function to records.

    Args:
        redact: Takes a text and returns it without what must not be kept.
        timeout_s: Longest time for one record.
    """

    def __init__(self, redact: Redact, *, timeout_s: float) -> None:
        self._redact = redact
        self._timeout_s = timeout_s
        # Of its own, so that a function that hangs takes no thread from anyone else.
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="redaction")
        self.failures = 0

    async def applied(self, record: Record) -> Record:
        """The record with each of its texts redacted, or without any."""
        if isinstance(record, CompletionRecord) and not record.store:
            return record
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(self._threads, self._redacted, record)
        except Exception as error:  # noqa: BLE001 - it is not our code, and any failure must keep content out
            self.failures += 1
            _log.error("redaction_failed", error=type(error).__name__, record=record.id)
            return without_content(record)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _redacted(self, record: Record) -> Record:
        if isinstance(record, FeedbackRecord):
            return replace(record, comment=self._texts(record.comment))
        return replace(
            record,
            messages=self._texts(record.messages),
            user=self._texts(record.user),
            metadata=self._texts(record.metadata),
            sampling=self._texts(record.sampling),
            candidates=self._texts(record.candidates),
        )

    def _texts(self, value: T) -> T:
        """The same value with every text redacted; keys stay."""
        return self._walk(value)  # type: ignore[no-any-return]

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            redacted = self._redact(value)
            if not isinstance(redacted, str):
                raise TypeError("the redaction returned no text")
            return redacted
        if isinstance(value, dict):
            return {key: item if key in _NOT_TEXT else self._walk(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._walk(item) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            changed = {
                field.name: self._walk(getattr(value, field.name))
                for field in fields(value)
                if field.name not in _NOT_TEXT
            }
            return replace(value, **changed)
        return value


def load_redaction(name: str) -> Redact:
    """The function that a dotted name means: ``package.module:function``.

    Raises:
        SettingsError: There is none.
    """
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"GATEWAY_JOURNAL__REDACT: {name} cannot be imported: {type(error).__name__}") from error
    if not callable(found):
        raise SettingsError(f"GATEWAY_JOURNAL__REDACT: {name} is no package.module:function")
    return found  # type: ignore[no-any-return]
