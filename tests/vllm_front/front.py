"""vLLM's real front end as a process, in front of the scripted engine (``engine.py`` says what a script is)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from gateway.embedded.llama import weights_path
from gateway.processes.child import free_port

HERE = Path(__file__).parent
_START_TIMEOUT_S = 180


def folder() -> Path:
    """Return where ``make vllm-front`` installs; RATCHET_VLLM_FRONT overrides it."""
    return Path(os.environ.get("RATCHET_VLLM_FRONT", HERE.parents[1] / "data" / "vllm"))


def installed() -> bool:
    """Tell whether vLLM's front end can be started here."""
    return (folder() / ".ready").exists()


def script(say: str, **directions: object) -> str:
    """Return a user message that makes the engine say ``say``."""
    return "@@" + json.dumps({"say": say, **directions}) + "@@"


class Front:
    """One vLLM server process.

    Args:
        home: Folder for its model, its log and its output.
        arguments: Further arguments of ``vllm serve``.
        classifier: Serve a reward model (``--runner pooling``) in place of a language model.
    """

    def __init__(self, home: Path, arguments: Sequence[str] = (), *, classifier: bool = False) -> None:
        self._home = home
        self._arguments = [*arguments, *(["--runner", "pooling"] if classifier else [])]
        self._classifier = classifier
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Front:
        self._home.mkdir(parents=True, exist_ok=True)
        self._start()
        self._wait_until_healthy()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def terminate(self) -> None:
        """Send SIGTERM, as an orchestrator that stops the server does; the engine aborts its running requests."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Return what the engine received, oldest first: requests and aborts."""
        path = self._home / "engine.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _start(self) -> None:
        python = folder() / "venv" / "bin" / "python"
        model = self._home / "model"
        if not model.exists():
            command = [python, HERE / "model.py", weights_path(), model]
            subprocess.run([*command, "classifier"] if self._classifier else command, check=True, capture_output=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "VLLM_TARGET_DEVICE": "cpu",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "SCRIPTED_ENGINE_LOG": str(self._home / "engine.jsonl"),
        }
        address = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
        with (self._home / "output.log").open("wb") as output:
            self._process = subprocess.Popen(
                [python, HERE / "serve.py", "serve", model, *address, *self._arguments],
                env=environment,
                stdout=output,
                stderr=output,
            )

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        with httpx2.Client(trust_env=False) as http:
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx2.TransportError):
                    if http.get(self.url + "/health").status_code == 200:
                        return
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"vLLM did not start: {(self._home / 'output.log').read_text()[-3000:]}")
