"""Fixtures of the clients' tests."""

from tests.serving import serve

__all__ = ["serve"]
