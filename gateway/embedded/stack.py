"""The embedded stack on one machine: Redis, llama.cpp, a small reward model, and the gateway.

The gateway is ``python -m gateway serve`` in a process of its own; environment variables give it the other parts'
addresses. One folder holds Redis's data, the spool, the adapters and the logs. To serve a new adapter, put its file
into ``adapters`` and run ``python -m gateway restart-backend``: it restarts llama.cpp's replicas with the adapters in
the folder, one after the other, while the gateway goes on serving.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx2

from gateway.embedded import llama, redis, weights
from gateway.embedded.control import Control
from gateway.embedded.redis import RedisServer
from gateway.embedded.replicas import Replicas
from gateway.errors import NotReady, SettingsError
from gateway.processes.child import ChildProcess, free_port
from gateway.settings import PREFIX

DATA_DIR = Path("data/embedded")

DEFAULT_TEMPERATURE = 1.0
"""The policy's default temperature: both judges rank it first at N = 8, within the interval (loadtests/README.md)"""

# The reward model shares the cores with llama.cpp: two threads, which wait for each other, took .28 s of CPU for an
# answer; one takes .11 s (two cores, races of 8).
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_SLOTS = 16
_POLL_S = 0.1
_GATEWAY_STOP_TIMEOUT_S = 40.0  # above GATEWAY_SHUTDOWN_S, in which running races finish


class EmbeddedStack:
    """Starts the parts in order and stops them in reverse order; a context manager.

    Args:
        data_dir: Folder of Redis's data, the spool and the logs; made when missing.
        port: The gateway's port on 127.0.0.1; 0 takes a free one.
        settings: Further settings of the gateway, by variable; none of ``OWN_SETTINGS``.
        on_step: Called with a description of each step, for a person.
        start_timeout_s: Longest time until the gateway is ready, once the other parts are.
    """

    def __init__(
        self,
        data_dir: Path = DATA_DIR,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        on_step: Callable[[str], None] = lambda step: None,
        start_timeout_s: float = 180.0,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.log_dir = self.data_dir / "logs"
        self._port = port
        self._settings = dict(settings or {})
        self._on_step = on_step
        self._start_timeout_s = start_timeout_s
        self._redis = RedisServer(self.data_dir / "redis")
        self._llama = Replicas(self.data_dir / "adapters", slots=_SLOTS, log_dir=self.log_dir)
        self._control = Control(self.data_dir, self.restart_backends, self._llama.restart_failed)
        self._gateway: ChildProcess | None = None
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """The gateway's base URL, without /v1."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def redis_url(self) -> str:
        return self._redis.url

    def start(self) -> Self:
        """Start all parts and wait until the gateway is ready.

        Raises:
            NotReady: A part is missing or did not start; the message has the end of its log.
            SettingsError: ``settings`` contains one of ``OWN_SETTINGS``.
        """
        self._check()
        self.log_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._on_step("starting Redis")
            self._running.enter_context(self._redis)
            self._running.enter_context(self._control)
            self._on_step(f"starting llama.cpp with {llama.MODEL_NAME}")
            self._running.enter_context(self._llama)
            self._on_step("starting the gateway and its reward model")
            self._gateway = self._start_gateway()
            self._wait_until_ready(self._gateway)
            self._control.open()
        except BaseException:
            self.stop()
            raise
        return self

    def restart_backends(self) -> str:
        """Restart llama.cpp's replicas one after the other with the adapters now in the folder; no request fails.

        Returns:
            A sentence that lists the adapters served now.

        Raises:
            NotReady: A replica did not start with the new adapters, and runs again with its earlier ones; or the
                gateway does not use it again.
        """
        self._llama.restart(self._wait_for_traffic)
        return f"{len(self._llama.urls)} replicas serve {', '.join(self._llama.adapters) or 'no adapter'}"

    def wait(self) -> str:
        """Wait until the gateway ends by itself; return its status and the end of its log, for a person."""
        assert self._gateway is not None
        status = self._gateway.wait()
        return f"the gateway ended with status {status}; {self._gateway.log_tail()}"

    def stop(self) -> None:
        """Stop the gateway, which finishes its races and sends its records to Redis; then llama.cpp, then Redis."""
        self._control.close()
        self._running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _check(self) -> None:
        redis.binary_path()
        llama.check_installed()
        weights.minilm_folder()
        weights.reward_adapter_folder()
        clashes = sorted(OWN_SETTINGS & self._settings.keys())
        if clashes:
            raise SettingsError(
                f"the embedded stack has its own backend, reward model and Redis: unset {', '.join(clashes)}, "
                "or run `python -m gateway serve` without --embedded"
            )
        if self._port:
            _check_free(self._port)

    def _start_gateway(self) -> ChildProcess:
        self._port = self._port or free_port()
        environment = _ONE_THREAD | {
            name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)
        }
        gateway = ChildProcess(
            "gateway",
            [sys.executable, "-m", "gateway", "serve"],
            log_path=self.log_dir / "gateway.log",
            env=environment | self.environment,
            stop_timeout_s=_GATEWAY_STOP_TIMEOUT_S,
        )
        gateway.start()
        self._running.callback(gateway.stop)
        return gateway

    @property
    def environment(self) -> dict[str, str]:
        """The gateway's environment variables; with them the night uses the same parts."""
        defaults = {
            "GATEWAY_RACE__MAX_IN_FLIGHT": str(_SLOTS),
            # Generation and rewards share the cores here, so rewards can be slow.
            "GATEWAY_REWARD__TIMEOUT_S": "60",
            "GATEWAY_RACE__DEADLINE_S": "180",
            "GATEWAY_BACKEND__REQUEST_TIMEOUT_S": "180",
            "GATEWAY_POLICY__DEFAULT_TEMPERATURE": str(DEFAULT_TEMPERATURE),
        }
        own = {
            "GATEWAY_PORT": str(self._port),
            "GATEWAY_BACKEND__KIND": "llamacpp",
            "GATEWAY_BACKEND__URLS": ",".join(self._llama.urls),
            "GATEWAY_REWARD__MODEL": str(weights.minilm_folder()),
            "GATEWAY_REWARD__ADAPTER": str(weights.reward_adapter_folder()),
            "GATEWAY_REDIS__URL": self._redis.url,
            "GATEWAY_JOURNAL__SPOOL_DIR": str(self.data_dir / "spool"),
        }
        return defaults | self._settings | own

    def _wait_until_ready(self, gateway: ChildProcess) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        missing = "its start"
        with httpx2.Client(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while gateway.exit_status is None and time.monotonic() < deadline:
                found = _missing(client)
                if found is None:
                    return
                if found != missing:
                    self._on_step(f"waiting for {found}")
                missing = found
                time.sleep(_POLL_S)
        end = f"ended with status {gateway.exit_status}" if gateway.exit_status is not None else "is not ready in time"
        raise NotReady(f"the gateway {end} (waiting for {missing}); {gateway.log_tail()}")

    def _wait_for_traffic(self, replica: str) -> None:
        """Wait until the gateway uses the restarted replica again: only then can the next one restart."""
        deadline = time.monotonic() + self._start_timeout_s
        with httpx2.Client(base_url=self.url, timeout=30.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx2.TransportError, ValueError, KeyError):
                    backend = client.get("/health/ready").json()["parts"]["backend"]
                    if backend["ready"] and replica not in backend["detail"]:
                        return
                time.sleep(_POLL_S)
        raise NotReady(f"the gateway does not use the restarted replica {replica} again")


OWN_SETTINGS = frozenset(
    {
        "GATEWAY_BACKEND__KIND",
        "GATEWAY_BACKEND__URLS",
        "GATEWAY_REWARD__MODEL",
        "GATEWAY_REWARD__ADAPTER",
        "GATEWAY_REWARD__URL",
        "GATEWAY_REDIS__URL",
        "GATEWAY_JOURNAL__SPOOL_DIR",
    }
)
"""The gateway's settings that the stack makes itself: the addresses of its parts."""


def _missing(client: httpx2.Client) -> str | None:
    """Return the parts that the gateway still waits for; None when it is ready."""
    try:
        response = client.get("/health/ready")
        if response.is_success:
            return None
        parts: dict[str, dict[str, object]] = response.json()["parts"]
    except (httpx2.TransportError, ValueError, KeyError):
        return "the gateway to listen"
    return ", ".join(f"{name} ({part['detail']})" for name, part in parts.items() if not part["ready"])


def _check_free(port: int) -> None:
    """Refuse a port in use: the other server's readiness would be taken for the gateway's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise NotReady(
                f"port {port} is in use: stop the program that listens there, or set GATEWAY_PORT to another"
            ) from error
