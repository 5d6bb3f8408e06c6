"""The whole stack on real weights: it starts, names what prevents a start, and leaves no process."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from gateway.embedded import serve
from gateway.embedded.llama import usable_cores
from gateway.embedded.stack import EmbeddedStack
from gateway.errors import NotReady, SettingsError
from gateway.processes.child import free_port
from tests.gateway.embedded.processes import children_of, wait_until_gone

PARTS = 2 + min(2, usable_cores())  # Redis, the gateway, llama.cpp's replicas


def test_it_serves_until_a_signal_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caller's own settings apply, SIGTERM is a clean end, and no child survives it."""
    port = free_port()
    seen: dict[str, object] = {}

    def ask_then_end(stack: EmbeddedStack) -> str:
        seen["ready"] = httpx2.get(f"{stack.url}/health/ready", trust_env=False).json()["status"]
        seen["models"] = [m["id"] for m in httpx2.get(f"{stack.url}/v1/models", trust_env=False).json()["data"]]
        seen["children"] = children_of(os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)
        return "unreached"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_PORT", str(port))
    monkeypatch.setenv("GATEWAY_API__MODELS", "mine")
    monkeypatch.setattr(EmbeddedStack, "wait", ask_then_end)
    before = set(children_of(os.getpid()))
    assert serve.EXIT_OK == serve.main()
    assert f"http://127.0.0.1:{port}/v1" in capsys.readouterr().out
    assert {"ready": "ready", "models": ["mine"]} == {name: seen[name] for name in ("ready", "models")}
    children = seen["children"]
    assert isinstance(children, list)
    assert PARTS == len(set(children) - before)
    assert before >= set(children_of(os.getpid()))


def test_no_process_is_left_when_it_is_killed(tmp_path: Path) -> None:
    """Kill -9 of the parent ends Redis, llama.cpp and the gateway."""
    environment = os.environ | {"GATEWAY_PORT": str(free_port()), "COLUMNS": "200"}
    command = [sys.executable, "-m", "gateway", "serve", "--embedded"]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert any("Ctrl-C stops everything" in line for line in parent.stdout), "it ended before it served"
    children = children_of(parent.pid)
    parent.kill()
    parent.communicate()
    assert PARTS == len(children)
    for child in children:
        wait_until_gone(child, timeout_s=60.0)


def test_a_gateway_that_refuses_its_settings_is_an_error_and_the_rest_is_stopped(tmp_path: Path) -> None:
    before = set(children_of(os.getpid()))
    steps: list[str] = []
    stack = EmbeddedStack(tmp_path, settings={"GATEWAY_NONSENSE": "1"}, on_step=steps.append)
    with pytest.raises(NotReady, match=r"(?s)the gateway ended with status 2 .*GATEWAY_NONSENSE"):
        stack.start()
    assert steps[0] == "starting Redis"
    assert before >= set(children_of(os.getpid()))


def test_a_gateway_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="the gateway is not ready in time"):
        EmbeddedStack(tmp_path, start_timeout_s=0.0).start()


def test_settings_of_the_stacks_own_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unset GATEWAY_REDIS__URL, or run `python -m gateway serve`"):
        EmbeddedStack(tmp_path, settings={"GATEWAY_REDIS__URL": "redis://elsewhere"}).start()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NotReady, match=f"port {port} is in use"):
            EmbeddedStack(tmp_path / "data", port=port).start()
    assert not (tmp_path / "data").exists()
