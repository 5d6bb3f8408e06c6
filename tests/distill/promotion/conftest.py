"""Fixtures of the tests of promotion."""

from tests.serving import serve

__all__ = ["serve"]
