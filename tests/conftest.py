"""Plugins that every test may use."""

pytest_plugins = ["tests.redis_server", "tests.serving"]
