"""llama.cpp's replicas on this machine: two if it has two cores, so that one serves while the other restarts.

On two cores, two servers of one thread also generate faster than one of two threads, whose threads wait for each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx2
import structlog

from gateway.embedded.llama import LlamaServer, Progress, usable_cores
from gateway.errors import NotReady

_MOST = 2
_DRAIN_S = 120.0
_TIMEOUT_S = 10.0
_STUCK_CHECKS = 4

log = structlog.get_logger()


class Replicas:
    """All replicas: starts and stops them together, restarts them one after the other; a context manager.

    Args:
        adapters_dir: Folder of GGUF LoRA files; an adapter's name is its file's, without the suffix.
        slots: Answers generated at once, over all replicas.
        log_dir: Folder of their logs.
        model: GGUF file of the base; None is SmolLM2's.
        drain_s: Longest time a restart waits for a replica's running answers.
    """

    def __init__(
        self, adapters_dir: Path, *, slots: int, log_dir: Path, model: Path | None = None, drain_s: float = _DRAIN_S
    ) -> None:
        self._adapters_dir = adapters_dir
        self._drain_s = drain_s
        self._running = contextlib.ExitStack()
        self._last: dict[LlamaServer, tuple[Progress | None, int]] = {}
        count = min(_MOST, usable_cores())
        self._servers = [
            LlamaServer(
                slots=max(1, slots // count),
                threads=max(1, usable_cores() // count),
                model=model,
                log_path=log_dir / f"llama-{number}.log",
            )
            for number in range(1, count + 1)
        ]

    @property
    def urls(self) -> list[str]:
        """Base URLs; known once started, and the same after a restart."""
        return [server.url for server in self._servers]

    @property
    def adapters(self) -> list[str]:
        return [path.stem for path in self._servers[0].adapters]

    def __enter__(self) -> Self:
        adapters = self._find_adapters()
        try:
            for server in self._servers:
                server.adapters = adapters
                self._running.enter_context(server)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def restart(self, wait_for_traffic: Callable[[str], None]) -> None:
        """Restart each replica on its port with the adapters now in the folder; check it before the next.

        Args:
            wait_for_traffic: Called with a restarted replica's host and port; returns once it gets traffic again.

        Raises:
            NotReady: A replica did not start with the new adapters. It runs again with its earlier ones, and the
                replicas after it were not restarted.
        """
        adapters = self._find_adapters()
        for server in self._servers:
            before = server.adapters
            try:
                server.restart(adapters, drain_s=self._drain_s)
                _check_served(server)
            except NotReady as error:
                log.error("llama_restart_failed", adapters=[path.stem for path in adapters])
                server.restart(before, drain_s=self._drain_s)
                raise NotReady(f"{error.message}\nIt serves what it served before.") from error
            wait_for_traffic(urlsplit(server.url).netloc)

    def restart_failed(self) -> None:
        """Restart replicas that ended by themselves or hang, with the same adapters; call it every few seconds."""
        for server in self._servers:
            if server.ended:
                problem = "ended"
            elif self._hangs(server):
                problem = "hangs"
            else:
                continue
            self._last.pop(server, None)
            log.error("llama_restarted", url=server.url, problem=problem)
            try:
                server.restart(server.adapters, drain_s=0.0)
            except NotReady as error:
                log.error("llama_restart_failed", problem=error.message)

    def _hangs(self, server: LlamaServer) -> bool:
        """Return True if the server had work and made no progress in several checks in a row."""
        before, checks = self._last.get(server, (None, 0))
        now = server.progress(_TIMEOUT_S / 2)
        stuck = now is None or (now.busy and now == before)
        self._last[server] = (now, checks + 1 if stuck else 0)
        return stuck and checks + 1 >= _STUCK_CHECKS

    def _find_adapters(self) -> tuple[Path, ...]:
        """Return the adapters' files, oldest first: an adapter keeps its number when a newer one is added."""
        files = self._adapters_dir.glob("[!.]*.gguf")
        return tuple(sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def _check_served(server: LlamaServer) -> None:
    try:
        listing = httpx2.get(f"{server.url}/lora-adapters", timeout=_TIMEOUT_S, trust_env=False).json()
        listed = [Path(entry["path"]) for entry in listing]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise NotReady("the restarted llama.cpp server does not list its adapters") from error
    if listed != list(server.adapters):
        raise NotReady("the restarted llama.cpp server lists other adapters than it was given")
