"""Load a new adapter into every replica, one after the other, and check that each serves it.

vLLM takes an adapter while it serves, always under a new name: reloading one would mix old and new weights in running
draws and in its prefix cache. TGI and llama.cpp take adapters at their start only: the operator's command restarts
them; the embedded stack restarts itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import structlog

from distill.errors import PromotionError
from distill.promotion.adapter import Adapter, check_name
from distill.promotion.gguf_lora import export_gguf
from distill.settings import PromotionSettings
from gateway.backend.discovery import expand
from gateway.backend.http import Http, Response
from gateway.backend.identify import FALLBACK, flavour_of
from gateway.backend.server import Server
from gateway.errors import GatewayError
from gateway.settings import BackendSettings

_POLL_S = 0.2
_TAIL_CHARS = 2000

log = structlog.get_logger()


async def load(adapter: Adapter, backend: BackendSettings, settings: PromotionSettings) -> None:
    """Load the adapter into every replica, next to those it serves; a replica that serves it already is left as it is.

    Args:
        adapter: The adapter. Its folder (for llama.cpp: ``settings.gguf_dir``) must be where replicas can read it.
        backend: The fleet.
        settings: How it is loaded.

    Raises:
        PromotionError: It could not be loaded, or a replica is not well or does not list it afterwards; the replicas
            after that one were not touched.
    """
    backend = await _with_kind(backend)
    path = adapter.folder.absolute()
    if backend.kind == "llamacpp":
        path = export_gguf(adapter, settings.gguf_dir).absolute()
    command = _command(backend, settings)
    async with _servers(backend, settings.load_timeout_s) as connect:
        each = command is not None and any("{url}" in part for part in command)
        if command is not None and not each and not await _all_serve(connect, backend, adapter.name):
            await _run(_filled(command, adapter.name, path, url=""), settings.load_timeout_s)
        for server in map(connect, await expand(backend.urls)):
            if command is None:
                await _load_into_vllm(server, backend, adapter.name, path)
            elif each and await _problem(server, backend, adapter.name):
                await _run(_filled(command, adapter.name, path, url=server.url), settings.load_timeout_s)
            await _await_served(server, backend, adapter.name, settings.load_timeout_s)
            log.info("adapter_loaded", adapter=adapter.name, replica=server.name)


async def unload(name: str, backend: BackendSettings, *, drain_s: float) -> None:
    """Unload an adapter that no policy names any more from vLLM; other backends drop it at their next restart.

    Args:
        name: The adapter's.
        backend: The fleet.
        drain_s: How long draws under this name may still run (a draw's longest time plus the policy's refresh).

    Raises:
        PromotionError: A replica refused.
    """
    check_name(name)
    backend = await _with_kind(backend)
    if backend.kind != "vllm":
        return
    await asyncio.sleep(drain_s)
    async with _servers(backend, backend.request_timeout_s) as connect:
        for server in map(connect, await expand(backend.urls)):
            if await _problem(server, backend, name) is None:
                await _post(server, "/v1/unload_lora_adapter", {"lora_name": name})


async def _with_kind(backend: BackendSettings) -> BackendSettings:
    """Return the settings; where they leave the kind open, with the kind that the servers say they are."""
    if backend.kind != "auto":
        return backend
    async with _servers(backend, backend.connect_timeout_s) as connect:
        for server in map(connect, await expand(backend.urls)):
            if (found := await server.identify()) is not None:
                return backend.model_copy(update={"kind": found.kind})
    return backend.model_copy(update={"kind": FALLBACK})


def _command(backend: BackendSettings, settings: PromotionSettings) -> list[str] | None:
    """Return the command's parts, with placeholders; None for vLLM, which has a route of its own."""
    if settings.load_command:
        try:
            return shlex.split(settings.load_command)
        except ValueError as error:
            raise PromotionError(f"DISTILL_PROMOTION__LOAD_COMMAND is no command: {error}") from error
    if backend.kind == "llamacpp":
        stack = str(settings.gguf_dir.absolute().parent).replace("{", "{{").replace("}", "}}")
        timeout_s = str(settings.load_timeout_s)
        return [sys.executable, "-m", "gateway", "restart-backend", "--data-dir", stack, "--timeout-s", timeout_s]
    if backend.kind == "vllm":
        return None
    raise PromotionError(
        "TGI takes adapters at its start only: set DISTILL_PROMOTION__LOAD_COMMAND to what restarts it"
    )


def _filled(command: list[str], name: str, path: Path, *, url: str) -> list[str]:
    """Fill in the placeholders part by part, so that no value becomes two arguments."""
    check_name(name)
    try:
        return [part.format(adapter=name, path=path, url=url) for part in command]
    except (KeyError, IndexError, ValueError) as error:
        raise PromotionError(
            f"DISTILL_PROMOTION__LOAD_COMMAND may hold {{adapter}}, {{path}} and {{url}} only: {error}"
        ) from error


async def _run(command: list[str], timeout_s: float) -> None:
    """Run a command to its end.

    Raises:
        PromotionError: It cannot be started, fails or takes too long; with the end of its output.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise PromotionError(f"the load command cannot be started: {error}") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError as error:
        raise PromotionError(f"the load command did not end within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        tail = output.decode(errors="replace")[-_TAIL_CHARS:].strip()
        raise PromotionError(f"the load command ended with status {process.returncode}: {tail or '(no output)'}")


async def _load_into_vllm(server: Server, backend: BackendSettings, name: str, path: Path) -> None:
    if await _problem(server, backend, name) is not None:
        await _post(server, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


async def _post(server: Server, route: str, body: dict[str, str]) -> None:
    try:
        response = await server.call(route, body)
    except GatewayError as error:
        raise PromotionError(f"{server.name} could not be asked for {route}: {error.message}") from error
    if response.status == 404 and not _is_missing_adapter(response):
        raise PromotionError(f"{server.name} has no {route}: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    if response.status == 404 and "lora_path" in body:
        raise PromotionError(
            f"{server.name} does not see an adapter in {body['lora_path']}: the folder must lie at this path there, too"
        )
    if response.status == 404:
        return  # the adapter to unload is not loaded any more
    if not 200 <= response.status < 300:
        text = response.content.decode(errors="replace")[:_TAIL_CHARS]
        raise PromotionError(f"{server.name} answers {route} with {response.status}: {text}")


def _is_missing_adapter(response: Response) -> bool:
    """Return whether a 404 is vLLM's for an adapter that it does not have; for a missing route it is FastAPI's own."""
    try:
        answer = orjson.loads(response.content)
        error = answer.get("error", answer)
        return error.get("type") == "NotFoundError" and bool(error.get("message")) and error["message"] != "Not Found"
    except (ValueError, AttributeError):
        return False


async def _all_serve(connect: Callable[[str], Server], backend: BackendSettings, name: str) -> bool:
    """Return whether every replica lists the adapter, which saves the command; False for TGI, which has no list."""
    return all([await _problem(connect(url), backend, name) is None for url in await expand(backend.urls)])


async def _await_served(server: Server, backend: BackendSettings, name: str, timeout_s: float) -> None:
    """Return once the replica is well and lists the adapter, if it has a list."""
    listed = name if flavour_of(backend.kind).catalogue_path is not None else None
    problem: str | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                problem = await _problem(server, backend, listed)
                if problem is None:
                    return
                await asyncio.sleep(_POLL_S)
    raise PromotionError(f"{server.name} does not serve {name} after {timeout_s:g} s: {problem}")


async def _problem(server: Server, backend: BackendSettings, name: str | None) -> str | None:
    """Return why the replica is not well, or not known to serve the adapter; None when it is."""
    flavour = flavour_of(backend.kind)
    try:
        problem = await server.find_problem(flavour)
        if problem is not None or name is None:
            return problem
        if flavour.catalogue_path is None:
            return "it does not list its adapters"
        return None if name in (await server.list_models(flavour)).adapters else "it does not list it"
    except GatewayError as error:
        return error.message


@contextlib.asynccontextmanager
async def _servers(backend: BackendSettings, timeout_s: float) -> AsyncIterator[Callable[[str], Server]]:
    """Yield a function that returns the server at a URL; close the connections afterwards."""
    async with contextlib.aclosing(Http(backend)) as http:
        yield lambda url: Server(http, url, timeout_s=timeout_s)
