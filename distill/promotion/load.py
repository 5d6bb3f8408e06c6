"""Has every replica serve a new adapter, and looks that it does, one replica after the other.

vLLM takes an adapter while it serves, always under a new name: reloading one would mix old and new weights in draws
that run and in its prefix cache. TGI and llama.cpp take adapters at their start only: the operator's command restarts
them; the embedded stack restarts itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import structlog

from distill.errors import PromotionError
from distill.promotion.adapter import Adapter, check_name
from distill.promotion.export import export_gguf
from distill.settings import PromotionSettings
from gateway.backend.discovery import expand
from gateway.backend.identify import FALLBACK, flavour_of, identify
from gateway.settings import BackendSettings
from gateway.tls import client_context

_POLL_S = 0.2
_TAIL_CHARS = 2000

log = structlog.get_logger()


async def load(adapter: Adapter, backend: BackendSettings, settings: PromotionSettings) -> None:
    """Have every replica serve the adapter beside what it serves; harmless where it is served already.

    Args:
        adapter: What to serve. Its folder (for llama.cpp: ``settings.gguf_dir``) must be where replicas can read it.
        backend: The fleet.
        settings: How it is loaded.

    Raises:
        PromotionError: It could not be loaded, or a replica is not well or does not list it afterwards; replicas
            after that one were left alone.
    """
    backend = await _with_kind(backend)
    path = adapter.folder.absolute()
    if backend.kind == "llamacpp":
        path = export_gguf(adapter, settings.gguf_dir).absolute()
    command = _command(backend, settings)
    async with _client(backend, settings.load_timeout_s) as client:
        each = command is not None and any("{url}" in part for part in command)
        if command is not None and not each and not await _all_serve(client, backend, adapter.name):
            await _run(_filled(command, adapter.name, path, url=""), settings.load_timeout_s)
        for url in await expand(backend.urls):
            if command is None:
                await _load_into_vllm(client, url, adapter.name, path)
            elif each and await _missing(client, backend, url, adapter.name):
                await _run(_filled(command, adapter.name, path, url=url), settings.load_timeout_s)
            await _await_served(client, backend, url, adapter.name, settings.load_timeout_s)
            log.info("adapter_loaded", adapter=adapter.name, replica=_host(url))


async def unload(name: str, backend: BackendSettings, *, drain_s: float) -> None:
    """Take an adapter that no policy names any more out of vLLM; other backends drop it at their next restart.

    Args:
        name: The adapter's.
        backend: The fleet.
        drain_s: How long draws under this name may still run (a draw's longest time, and the policy's refresh).

    Raises:
        PromotionError: A replica refused.
    """
    check_name(name)
    backend = await _with_kind(backend)
    if backend.kind != "vllm":
        return
    await asyncio.sleep(drain_s)
    async with _client(backend, backend.request_timeout_s) as client:
        for url in await expand(backend.urls):
            if await _missing(client, backend, url, name) is None:
                await _post(client, url, "/v1/unload_lora_adapter", {"lora_name": name})


async def _with_kind(backend: BackendSettings) -> BackendSettings:
    """Return the settings with the kind that the fleet says it is, where they leave it open."""
    if backend.kind != "auto":
        return backend
    async with _client(backend, backend.connect_timeout_s) as client:
        for url in await expand(backend.urls):
            found = await identify(partial(_json, client, url.removesuffix("/v1")))
            if found is not None:
                return backend.model_copy(update={"kind": found.kind})
    return backend.model_copy(update={"kind": FALLBACK})


async def _json(client: httpx2.AsyncClient, root: str, path: str) -> Any:
    """Return the JSON at a path; None where there is none."""
    try:
        response = await client.get(root + path)
        return response.json() if response.status_code == 200 else None
    except (httpx2.HTTPError, ValueError):
        return None


def _command(backend: BackendSettings, settings: PromotionSettings) -> list[str] | None:
    """The command's parts, with placeholders; None is vLLM's own API."""
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
    """Placeholders filled in part by part, so that no value becomes two arguments."""
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


async def _load_into_vllm(client: httpx2.AsyncClient, url: str, name: str, path: Path) -> None:
    backend = BackendSettings(kind="vllm", urls=(url,))
    if await _missing(client, backend, url, name) is not None:
        await _post(client, url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


async def _post(client: httpx2.AsyncClient, url: str, route: str, body: dict[str, str]) -> None:
    try:
        response = await client.post(url.removesuffix("/v1") + route, json=body)
    except httpx2.HTTPError as error:
        raise PromotionError(f"{_host(url)} could not be asked for {route}: {type(error).__name__}") from error
    if response.status_code == 404 and not _found_nothing(response):
        raise PromotionError(f"{_host(url)} has no {route}: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    if response.status_code == 404 and "lora_path" in body:
        raise PromotionError(
            f"{_host(url)} does not see an adapter in {body['lora_path']}: the folder must lie at this path there, too"
        )
    if response.status_code == 404:
        return  # an unload of what is not loaded any more
    if not response.is_success:
        raise PromotionError(f"{_host(url)} answers {route} with {response.status_code}: {response.text[:_TAIL_CHARS]}")


def _found_nothing(response: httpx2.Response) -> bool:
    """Whether vLLM's route answers that there is no such adapter; a missing route has FastAPI's own error."""
    try:
        answer = response.json()
        error = answer.get("error", answer)
        return error.get("type") == "NotFoundError" and bool(error.get("message")) and error["message"] != "Not Found"
    except (ValueError, AttributeError):
        return False


async def _all_serve(client: httpx2.AsyncClient, backend: BackendSettings, name: str) -> bool:
    """Whether the command need not be run; never so for TGI, which does not tell."""
    return all([await _missing(client, backend, url, name) is None for url in await expand(backend.urls)])


async def _await_served(
    client: httpx2.AsyncClient, backend: BackendSettings, url: str, name: str, timeout_s: float
) -> None:
    """Return once the replica is well and, where it tells, lists the adapter."""
    told = flavour_of(backend.kind).catalogue_path is not None
    missing: str | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                missing = await (_missing(client, backend, url, name) if told else _unwell(client, backend, url))
                if missing is None:
                    return
                await asyncio.sleep(_POLL_S)
    raise PromotionError(f"{_host(url)} does not serve {name} after {timeout_s:g} s: {missing}")


async def _missing(client: httpx2.AsyncClient, backend: BackendSettings, url: str, name: str) -> str | None:
    """Why the replica cannot be said to serve the adapter; None when it lists it."""
    flavour = flavour_of(backend.kind)
    unwell = await _unwell(client, backend, url)
    if unwell is not None or flavour.catalogue_path is None:
        return unwell or "it does not tell its adapters"
    try:
        response = await client.get(url.removesuffix("/v1") + flavour.catalogue_path)
        listed = flavour.read_catalogue(response.json()).adapters
    except (httpx2.HTTPError, LookupError, TypeError, AttributeError, ValueError):
        return "its list of adapters cannot be read"
    return None if name in listed else "it does not list it"


async def _unwell(client: httpx2.AsyncClient, backend: BackendSettings, url: str) -> str | None:
    try:
        response = await client.get(url.removesuffix("/v1") + flavour_of(backend.kind).health_path)
    except httpx2.HTTPError as error:
        return f"it cannot be reached ({type(error).__name__})"
    return None if response.status_code == 200 else f"its health check answers with status {response.status_code}"


def _client(backend: BackendSettings, timeout_s: float) -> httpx2.AsyncClient:
    """Straight to the replicas, with their key."""
    headers = {"authorization": f"Bearer {backend.api_key}"} if backend.api_key else {}
    return httpx2.AsyncClient(
        headers=headers, timeout=timeout_s, trust_env=False, verify=client_context(backend.ca_file)
    )


def _host(url: str) -> str:
    """Host and port: a URL may hold a password."""
    return url.partition("://")[2].rpartition("@")[2]
