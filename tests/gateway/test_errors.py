"""Errors whose tracebacks are removed before they are stored."""

from __future__ import annotations

import gc
import weakref

import pytest

from gateway.errors import BackendFailed, BackendProtocolError, strip_traceback


class Body:
    """A large object in a frame's locals."""


def fail(body: Body) -> None:
    """Fail as calls do: with a cause that has a cause, each with the frame in which it was raised."""
    try:
        try:
            raise ValueError(body)
        except ValueError as error:
            raise BackendFailed("the cause") from error
    except BackendFailed as error:
        raise BackendProtocolError("the error") from error


def test_a_stripped_error_holds_no_local_of_its_frames() -> None:
    """Its message stays; its causes and its traceback, and with them every frame, are freed at once."""
    body = Body()
    seen = weakref.ref(body)
    gc.disable()
    try:
        with pytest.raises(BackendProtocolError) as failed:
            fail(body)
        stripped = strip_traceback(failed.value)
        del failed, body
        assert seen() is None
    finally:
        gc.enable()
    assert ("the error", None, None, None) == (
        stripped.message,
        stripped.__traceback__,
        stripped.__cause__,
        stripped.__context__,
    )


def test_an_object_that_stores_its_own_error_is_freed() -> None:
    """A library's object may store the error that broke it, which is then the cause of ours."""

    class Stream:
        """Like aiohttp's: it stores its error, whose traceback holds this frame."""

        error: Exception | None = None

        def read(self) -> None:
            try:
                raise OSError
            except OSError as error:
                self.error = error
                raise

    def call() -> weakref.ref[Stream]:
        stream = Stream()
        try:
            stream.read()
        except OSError as error:
            ours = BackendFailed("it broke")
            ours.__cause__ = strip_traceback(error)
        return weakref.ref(stream)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()
