"""Spans of OpenTelemetry around the work of a request. While there is no collector a span costs about a microsecond.

An exception leaves the name of its class on a span and nothing else: message and traceback may hold callers' texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TypeVar

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, get_current_span, use_span
from opentelemetry.util.types import AttributeValue

CUT = "ratchet.cut"
"""True if the work was stopped before its end: by a deadline, a quorum, a caller who went."""

Attributes = Mapping[str, AttributeValue]
T = TypeVar("T")

_tracer: Tracer | None = None


def use_tracer(tracer: Tracer | None) -> None:
    """Make spans with this tracer; with None make none."""
    global _tracer
    _tracer = tracer


@contextmanager
def span(name: str, attributes: Callable[[], Attributes] = dict, *, to_server: bool = False) -> Iterator[None]:
    """Make a span around the block. ``attributes`` is called only if the span is recorded."""
    if _tracer is None:
        yield
        return
    opened = _start(_tracer, name, attributes, to_server)
    with ending(opened), current(opened):
        yield


def over_stream(
    name: str,
    items: AsyncGenerator[T],
    attributes: Callable[[], Attributes],
    *,
    of_item: Callable[[T], Attributes] | None = None,
    to_server: bool = False,
) -> AsyncGenerator[T]:
    """Return the items, made under a span that ends with them and has the attributes that ``of_item`` returns."""
    return items if _tracer is None else _over_stream(_tracer, name, items, attributes, of_item, to_server)


async def _over_stream(
    tracer: Tracer,
    name: str,
    items: AsyncGenerator[T],
    attributes: Callable[[], Attributes],
    of_item: Callable[[T], Attributes] | None,
    to_server: bool,
) -> AsyncGenerator[T]:
    opened = _start(tracer, name, attributes, to_server)
    with ending(opened):
        async with aclosing(items):
            while True:
                with current(opened):  # in each step, not over all of them: each may run in a task of its own
                    item = await anext(items, None)
                if item is None:
                    return
                if of_item is not None and opened.is_recording():
                    opened.set_attributes(of_item(item))
                yield item


def record(attributes: Callable[[], Attributes]) -> None:
    """Set attributes of the current span, if it is recorded."""
    if _tracer is not None and (opened := get_current_span()).is_recording():
        opened.set_attributes(attributes())


@contextmanager
def ending(opened: Span) -> Iterator[None]:
    """End the span with the block; note on it if the block was cut or failed."""
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        opened.set_attribute(CUT, True)
        raise
    except Exception as error:
        opened.set_attribute("error.type", type(error).__name__)
        opened.set_status(StatusCode.ERROR)
        raise
    finally:
        opened.end()


@contextmanager
def current(opened: Span) -> Iterator[None]:
    """Make the span the parent of those that begin in the block."""
    with use_span(opened, record_exception=False, set_status_on_exception=False):
        yield


def _start(tracer: Tracer, name: str, attributes: Callable[[], Attributes], to_server: bool) -> Span:
    opened = tracer.start_span(name, kind=SpanKind.CLIENT if to_server else SpanKind.INTERNAL)
    if opened.is_recording():
        opened.set_attributes(attributes())
    return opened
