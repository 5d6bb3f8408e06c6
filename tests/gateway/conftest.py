"""Fixtures of the gateway's tests."""

from tests.serving import serve

__all__ = ["serve"]
