"""How a span ends, and how it stays the current one while a stream goes on.

An exception leaves its class's name on a span and nothing else: its message or its trace may hold what was said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, use_span
from opentelemetry.util.types import Attributes

CUT = "ratchet.cut"
"""Whether the work was stopped before its end: a deadline, a quorum, a caller who went."""

T = TypeVar("T")


@contextmanager
def spanning(
    tracer: Tracer, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes = None
) -> Iterator[Span]:
    """A new span around what follows, and the parent of every span in it."""
    span = tracer.start_span(name, kind=kind, attributes=attributes)
    with ending(span), current(span):
        yield span


@contextmanager
def ending(span: Span) -> Iterator[None]:
    """End the span with what follows, and say on it how that ended."""
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        span.set_attribute(CUT, True)
        raise
    except Exception as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()


@contextmanager
def current(span: Span) -> Iterator[None]:
    """Make the span the parent of those that begin in what follows."""
    with use_span(span, record_exception=False, set_status_on_exception=False):
        yield


async def each_under(span: Span, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The items, each of them made under the span.

    A generator's steps may run in a task of their own each, so the span is current within a step and never over one.
    """
    async with aclosing(items):
        while True:
            with current(span):
                item = await anext(items, None)
            if item is None:
                return
            yield item
