"""Loading: vLLM takes an adapter while it runs, others by the operator's command; each replica is checked."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distill.errors import PromotionError
from distill.promotion import load as loading
from distill.promotion.adapter import Adapter, BaseFacts, Manifest
from distill.promotion.load import load, unload
from distill.settings import PromotionSettings
from gateway.backend.http import Response
from gateway.backend.server import Server
from gateway.settings import BackendSettings
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.stubs.vllm import VllmKnobs, VllmStub

NAME = "rft-20261122-0123456789ab"


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """An adapter with an empty folder, which no stub reads."""
    (tmp_path / NAME).mkdir()
    base = BaseFacts("base", "llama", layers=2, heads=4, kv_heads=2)
    return Adapter(tmp_path / NAME, Manifest(NAME, base, "run", 4, "2026-11-22T00:00:00+00:00", {}, 8))


def calls(stub: VllmStub) -> list[tuple[str, Any]]:
    return [(request.path.rpartition("/")[2], json.loads(request.body)) for request in stub.state.requests]


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


async def test_vllm_takes_it_under_its_own_name_once(adapter: Adapter) -> None:
    async with VllmStub() as one, VllmStub() as two:
        backend = BackendSettings(kind="vllm", urls=(one.url, two.url + "/v1"))
        for _ in range(2):
            await load(adapter, backend, PromotionSettings())
        for stub in (one, two):
            assert [("load_lora_adapter", {"lora_name": NAME, "lora_path": str(adapter.folder)})] == calls(stub)


async def test_an_unused_adapter_leaves_vllm_once(adapter: Adapter) -> None:
    async with VllmStub() as stub:
        backend = BackendSettings(kind="vllm", urls=(stub.url,))
        await load(adapter, backend, PromotionSettings())
        for _ in range(2):
            await unload(NAME, backend, drain_s=0)
        assert ({}, ("unload_lora_adapter", {"lora_name": NAME})) == (stub.adapters, calls(stub)[-1])
        assert 2 == len(calls(stub))
        await unload(NAME, backend.model_copy(update={"kind": "tgi"}), drain_s=0)


async def test_a_missing_folder_and_a_missing_switch_of_vllm_are_different_errors(adapter: Adapter) -> None:
    """Both answer 404: the volume is not shared, or the route is missing."""
    adapter.folder.rmdir()
    async with VllmStub() as stub:
        with pytest.raises(PromotionError, match="does not see an adapter in") as refused:
            await load(adapter, BackendSettings(kind="vllm", urls=(stub.url,)), PromotionSettings())
    assert str(adapter.folder.absolute()) in str(refused.value)


async def test_vllm_without_its_switch_is_an_error(adapter: Adapter) -> None:
    async with VllmStub(VllmKnobs(runtime_adapters=False)) as stub:
        with pytest.raises(PromotionError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await load(adapter, BackendSettings(kind="vllm", urls=(stub.url,)), PromotionSettings())


async def test_an_unreachable_replica_is_named_and_later_ones_are_not_touched(adapter: Adapter) -> None:
    async with VllmStub() as gone:
        pass
    async with VllmStub() as stub:
        with pytest.raises(PromotionError, match=gone.url.removeprefix("http://")):
            await load(adapter, BackendSettings(kind="vllm", urls=(gone.url, stub.url)), PromotionSettings())
        assert [] == calls(stub)


async def test_tgi_is_restarted_replica_by_replica_with_the_values_filled_in(adapter: Adapter, tmp_path: Path) -> None:
    written = tmp_path / "written"
    code = "import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + chr(10))"
    command = python(code, str(written), "{adapter}", "{path}", "{url}")
    async with TgiStub(Knobs()) as one, TgiStub(Knobs()) as two:
        backend = BackendSettings(urls=(one.url, two.url))
        await load(adapter, backend, PromotionSettings(load_command=command))
        assert [f"{NAME} {adapter.folder} {url}" for url in (one.url, two.url)] == written.read_text().splitlines()


async def test_without_a_url_the_command_runs_once(adapter: Adapter, tmp_path: Path) -> None:
    written = tmp_path / "written"
    command = python("import sys; open(sys.argv[1], 'a').write('x')", str(written))
    async with TgiStub(Knobs()) as one, TgiStub(Knobs()) as two:
        backend = BackendSettings(urls=(one.url, two.url))
        await load(adapter, backend, PromotionSettings(load_command=command))
    assert "x" == written.read_text()


async def test_a_sick_replica_ends_the_loading(adapter: Adapter) -> None:
    async with TgiStub(Knobs()) as stub:
        stub.knobs.update({"healthy": False})
        settings = PromotionSettings(load_command=python("pass")).model_copy(update={"load_timeout_s": 2})
        with pytest.raises(PromotionError, match=r"does not serve rft-.* after 2 s: its health check .* 503"):
            await load(adapter, BackendSettings(urls=(stub.url,)), settings)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "set DISTILL_PROMOTION__LOAD_COMMAND"),
        ("'", "is no command"),
        ("/no/such/program", "cannot be started"),
        ("{nonsense}", "may hold {adapter}, {path} and {url} only"),
        (python("import sys; sys.exit('it broke')"), "ended with status 1: it broke"),
        (python("import time; time.sleep(60)"), "did not end within 1 s"),
    ],
)
async def test_a_failing_command_is_an_error_with_its_output(adapter: Adapter, command: str, message: str) -> None:
    timeout_s = 1 if "sleep" in command else 60
    settings = PromotionSettings(load_command=command).model_copy(update={"load_timeout_s": timeout_s})
    async with TgiStub(Knobs()) as stub:
        with pytest.raises(PromotionError) as caught:
            await load(adapter, BackendSettings(urls=(stub.url,)), settings)
    assert message in str(caught.value)


async def test_a_command_is_not_run_where_every_replica_serves_the_adapter_already(
    adapter: Adapter, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    settings = PromotionSettings(load_command=python("import sys; open(sys.argv[1], 'a').write('x')", str(written)))
    async with VllmStub() as one, VllmStub() as two:
        both = BackendSettings(kind="vllm", urls=(one.url, two.url))
        await load(adapter, both, PromotionSettings())
        await load(adapter, both, settings)
        assert not written.exists()
        two.adapters.clear()
        with pytest.raises(PromotionError, match=f"does not serve {NAME} after 1 s: it does not list it"):
            await load(adapter, both, settings.model_copy(update={"load_timeout_s": 1}))
    assert "x" == written.read_text()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(sys.stdin.read() or 'no input')", "ended with status 1: no input"),
        ("import sys; sys.exit(3)", "ended with status 3: (no output)"),
        ("import os, sys; os.write(1, b' \\xff '); sys.exit(2)", "ended with status 2: \ufffd"),
        ("import sys; print('a' + 'b' * 1998); sys.exit(1)", "ended with status 1: a" + "b" * 1998),
        ("import sys; print('a' + 'b' * 2000); sys.exit(1)", "ended with status 1: " + "b" * 1999),
    ],
)
async def test_the_end_of_a_failed_commands_output_is_its_reason(code: str, message: str) -> None:
    with pytest.raises(PromotionError) as caught:
        await loading._run([sys.executable, "-c", code], 60.0)
    assert f"the load command {message}" == str(caught.value)


def test_the_embedded_stack_restarts_itself() -> None:
    """Braces in its folder are no placeholders."""
    settings = PromotionSettings(gguf_dir=Path("/data/{x}/gguf"))
    command = loading._command(BackendSettings(kind="llamacpp"), settings)
    assert command is not None
    filled = loading._filled(command, NAME, Path("/a"), url="")
    arguments = ["-m", "gateway", "restart-backend", "--data-dir", "/data/{x}", "--timeout-s"]
    assert [sys.executable, *arguments, str(settings.load_timeout_s)] == filled
    assert loading._command(BackendSettings(kind="vllm"), settings) is None


def test_values_are_filled_in_part_by_part() -> None:
    parts = ["a", "{adapter}", "--to={path}", "{url}"]
    assert ["a", NAME, "--to=/x y", "http://b"] == loading._filled(parts, NAME, Path("/x y"), url="http://b")
    with pytest.raises(PromotionError, match="is not an adapter's name"):
        loading._filled(parts, "other", Path("/a"), url="")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b'{"type": "NotFoundError", "message": "The lora adapter \'a\' cannot be found."}', True),
        (b'{"error": {"type": "NotFoundError", "message": "The lora adapter cannot be found."}}', True),
        (b'{"error": {"type": "NotFoundError", "message": "Not Found"}}', False),
        (b'{"error": {"type": "NotFoundError", "message": ""}}', False),
        (b'{"error": {"type": "NotFoundError"}}', False),
        (b'{"error": {"type": "Other", "message": "The lora adapter cannot be found."}}', False),
        (b'{"detail": "Not Found"}', False),
        (b'{"error": "x"}', False),
        (b"[]", False),
        (b"<html>", False),
    ],
)
def test_a_missing_adapter_is_told_from_a_missing_route(content: bytes, missing: bool) -> None:
    assert missing == loading._is_missing_adapter(Response(404, {}, content))


@pytest.mark.parametrize(("status", "refused"), [(199, True), (200, False), (299, False), (300, True), (500, True)])
async def test_any_status_but_success_is_a_refusal(status: int, refused: bool) -> None:
    calls: list[tuple[str, Any]] = []

    async def call(route: str, body: Any) -> Response:
        calls.append((route, body))
        return Response(status, {}, b"\xff" + b"x" * 2500)

    server = cast(Server, SimpleNamespace(name="host:1", call=call))
    if refused:
        with pytest.raises(PromotionError) as caught:
            await loading._post(server, "/v1/route", {"lora_name": NAME})
        assert f"host:1 answers /v1/route with {status}: \ufffd" + "x" * 1999 == str(caught.value)
    else:
        await loading._post(server, "/v1/route", {"lora_name": NAME})
    assert [("/v1/route", {"lora_name": NAME})] == calls


async def test_an_open_kind_is_that_of_the_first_server_that_says_it(adapter: Adapter) -> None:
    async with VllmStub() as gone:
        pass
    async with VllmStub() as stub:
        open_kind = BackendSettings(kind="auto", urls=(gone.url, stub.url))
        assert open_kind.model_copy(update={"kind": "vllm"}) == await loading._with_kind(open_kind)
        await load(adapter, BackendSettings(kind="auto", urls=(stub.url,)), PromotionSettings())
        assert [("load_lora_adapter", {"lora_name": NAME, "lora_path": str(adapter.folder)})] == [
            call for call in map(called, stub.state.requests) if call is not None
        ]
    silent = BackendSettings(kind="auto", urls=(gone.url,))
    assert silent.model_copy(update={"kind": "tgi"}) == await loading._with_kind(silent)
    named = BackendSettings(kind="llamacpp", urls=(gone.url,))
    assert named is await loading._with_kind(named)


def called(request: Any) -> tuple[str, Any] | None:
    return (request.path.rpartition("/")[2], json.loads(request.body)) if "lora" in request.path else None
