"""Fixtures of the tests of measurements."""

from tests.serving import serve

__all__ = ["serve"]
