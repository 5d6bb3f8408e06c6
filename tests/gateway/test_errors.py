"""What becomes of an error that is kept."""

from __future__ import annotations

import gc
import weakref

import pytest

from gateway.errors import BackendFailed, BackendProtocolError, strip_traceback


class Body:
    """Something large that a frame knows."""


def fail(body: Body) -> None:
    """Fail as calls do: with a cause that has a cause, each with the frame it was raised in."""
    try:
        try:
            raise ValueError(body)
        except ValueError as error:
            raise BackendFailed("the cause") from error
    except BackendFailed as error:
        raise BackendProtocolError("the error") from error


def test_a_bare_error_holds_nothing_that_its_frames_knew() -> None:
    """It stays what it is; its causes and its trace, and with them every frame, go at once."""
    body = Body()
    seen = weakref.ref(body)
    gc.disable()
    try:
        with pytest.raises(BackendProtocolError) as failed:
            fail(body)
        kept = strip_traceback(failed.value)
        del failed, body
        assert seen() is None
    finally:
        gc.enable()
    assert ("the error", None, None, None) == (kept.message, kept.__traceback__, kept.__cause__, kept.__context__)


def test_an_error_that_came_from_what_keeps_it_is_let_go() -> None:
    """A library's object may keep the error that broke it, which is then the cause of ours."""

    class Stream:
        """As aiohttp's: it keeps its error, and the error's trace this frame."""

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
