"""llama.cpp's replicas on this machine: two where there are two cores, so that one serves while the other restarts.

Two of one thread each also draw faster than one of two threads (measured on two cores): nobody waits at barriers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx2
import structlog

from gateway.embedded.llama import LlamaServer, Progress, usable_cores
from gateway.errors import NotReady

_MOST = 2
_DRAIN_S = 120.0
_TIMEOUT_S = 10.0
_STUCK_LOOKS = 4

log = structlog.get_logger()


class Replicas:
    """Starts and stops them together, and restarts them one after the other; a context manager.

    Args:
        adapters_dir: Folder of GGUF LoRA files; an adapter's name is its file's, without the ending.
        slots: Draws that run at once, over all replicas.
        log_dir: Where their logs go.
        model: GGUF file of the base; None is SmolLM2's.
        drain_s: Longest time a restart waits for a replica's running draws.
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
        """Their base URLs, known once started and the same after a restart."""
        return [server.url for server in self._servers]

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that every replica serves."""
        return [path.stem for path in self._servers[0].adapters]

    def __enter__(self) -> Self:
        adapters = self._found()
        try:
            for server in self._servers:
                server.adapters = adapters
                self._running.enter_context(server)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()

    def restart(self, await_found_well: Callable[[str], None]) -> None:
        """Restart them with the adapters there are now, each on its port, each checked before the next.

        Args:
            await_found_well: Called with a restarted replica's host and port; returns once it gets traffic again.

        Raises:
            NotReady: A replica did not start with the new adapters: it runs again with those it had, and those after
                it were left alone.
        """
        adapters = self._found()
        for server in self._servers:
            before = server.adapters
            try:
                server.restart(adapters, drain_s=self._drain_s)
                _check_served(server)
            except NotReady as error:
                log.error("llama_restart_failed", adapters=[path.stem for path in adapters])
                server.restart(before, drain_s=self._drain_s)
                raise NotReady(f"{error.message}\nIt serves what it served before.") from error
            await_found_well(urlsplit(server.url).netloc)

    def mend(self) -> None:
        """Restart what ended by itself or hangs, with the adapters it had; call it every few seconds."""
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
        """Return whether the server has got nowhere at several looks in a row, though it had something to do."""
        before, looks = self._last.get(server, (None, 0))
        now = server.progress(_TIMEOUT_S / 2)
        stuck = now is None or (now.busy and now == before)
        self._last[server] = (now, looks + 1 if stuck else 0)
        return looks + 1 >= _STUCK_LOOKS if stuck else False

    def _found(self) -> tuple[Path, ...]:
        """Oldest first: an adapter keeps its number when a newer one comes, for those who remember numbers."""
        files = self._adapters_dir.glob("[!.]*.gguf")
        return tuple(sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def _check_served(server: LlamaServer) -> None:
    """Refuse a replica that does not list exactly its adapters."""
    try:
        listing = httpx2.get(f"{server.url}/lora-adapters", timeout=_TIMEOUT_S, trust_env=False).json()
        listed = [Path(entry["path"]) for entry in listing]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise NotReady("the restarted llama.cpp server does not tell its adapters") from error
    if listed != list(server.adapters):
        raise NotReady("the restarted llama.cpp server lists other adapters than it was given")
