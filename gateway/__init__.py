"""The live path: every chat request is answered with the best of N candidates."""

__version__ = "0.1.0"
