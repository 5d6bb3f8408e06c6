"""Every error the nightly path raises on purpose, as one tree.

    DistillError
    └── DataError       a file of pairs, answers or prompts is missing or malformed; says where

Messages never hold prompt or answer text.
"""

from __future__ import annotations


class DistillError(Exception):
    """Root of the tree."""


class DataError(DistillError):
    """A file of data is missing or malformed."""
