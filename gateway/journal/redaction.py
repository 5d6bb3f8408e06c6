"""Redact every text of a record with the operator's function, before the record goes to disk.

The function may be slow, hang or fail: it runs in threads of its own, with a timeout, and any failure keeps all content
out of the record, as ``store: false`` does. The answer to the caller is not changed.
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
# Values of these keys are words of the protocol or identifiers, which readers of the record need.
_NOT_TEXT = frozenset({"role", "type", "id", "tool_call_id", "finish_reason", "error"})

_log = structlog.get_logger()


class Redaction:
    """Applies the function to every text of a record, within ``timeout_s``."""

    def __init__(self, redact: Redact, *, timeout_s: float) -> None:
        self._redact = redact
        self._timeout_s = timeout_s
        # Threads of its own: a function that hangs blocks nobody else.
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="redaction")
        self.failures = 0

    async def apply(self, record: Record) -> Record:
        """Return the record with each of its texts redacted, or without content if that failed."""
        if isinstance(record, CompletionRecord) and not record.store:
            return record
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(self._threads, self._redact_record, record)
        except Exception as error:  # noqa: BLE001 - foreign code; any failure must keep content out
            self.failures += 1
            _log.error("redaction_failed", error=type(error).__name__, record=record.id)
            return without_content(record)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _redact_record(self, record: Record) -> Record:
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
        redacted: T = self._walk(value)
        return redacted

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
    """Import the function named ``package.module:function``; raise SettingsError if there is none."""
    module, colon, attribute = name.partition(":")
    try:
        found: Redact | None = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"GATEWAY_JOURNAL__REDACT: {name} cannot be imported: {type(error).__name__}") from error
    if not callable(found):
        raise SettingsError(f"GATEWAY_JOURNAL__REDACT: {name} is not a package.module:function")
    return found
