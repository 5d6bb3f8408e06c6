"""Serving the embedded stack as a command."""

from pathlib import Path

import pytest

from gateway.embedded import serve


def test_serving_fails_when_the_gateway_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EndedStack:
        url, log_dir = "http://127.0.0.1:1", Path("logs")

        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> "EndedStack":
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait(self) -> str:
            return "the gateway ended with status 1"

    monkeypatch.setattr(serve, "EmbeddedStack", EndedStack)
    assert serve.EXIT_FAILED == serve.main()
    assert "the gateway ended with status 1" in capsys.readouterr().out
