"""The commands of ``python -m gateway``, most of them as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from gateway.__main__ import cli, out
from gateway.api.auth import ApiKeys
from gateway.processes.child import free_port
from gateway.settings import Settings, variables
from tests.listeners import until_all_listen
from tests.redis_server import RedisServer
from tests.serving import Served
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardStub
from tests.stubs.tgi import TgiStub

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}


def gateway(*arguments: str, **settings: str) -> Result:
    """Run a short command in this process."""
    return CliRunner().invoke(cli, arguments, env={**dict.fromkeys(variables()), **settings})


@dataclass(slots=True)
class Running(Served):
    """A gateway as a process of its own."""

    process: asyncio.subprocess.Process


@asynccontextmanager
async def serving(
    redis: RedisServer, spool: Path, knobs: Knobs | None = None, **settings: str
) -> AsyncIterator[Running]:
    """Start ``python -m gateway serve`` with stub servers; yield it once it is ready."""
    port = free_port()
    async with AsyncExitStack() as stack:
        tgi = await stack.enter_async_context(TgiStub(knobs))
        rewards = await stack.enter_async_context(RewardStub())
        environment = {
            **ENVIRONMENT,
            "GATEWAY_PORT": str(port),
            "GATEWAY_BACKEND__URLS": tgi.url,
            "GATEWAY_REWARD__URL": rewards.url,
            "GATEWAY_REDIS__URL": redis.url,
            "GATEWAY_JOURNAL__SPOOL_DIR": str(spool),
            **settings,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", "serve", env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30))
            await _until_ready(http, process)
            known = Settings.model_validate({"redis": {"url": redis.url}})
            yield Running(url, http, tgi, rewards, known, process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _until_ready(http: httpx2.AsyncClient, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError(f"the gateway ended with status {process.returncode}")


def test_an_unknown_setting_is_an_error_in_one_line() -> None:
    ended = gateway("serve", GATEWAY_SPEED="9")
    assert ended.exit_code == 2
    assert "GATEWAY_SPEED" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_reward_model_names_the_setting() -> None:
    ended = gateway("serve")
    assert (ended.exit_code, "GATEWAY_REWARD__MODEL" in ended.stderr) == (2, True)


def test_a_new_key_is_shown_with_its_line_for_the_key_file(tmp_path: Path) -> None:
    lines = gateway("key", "new", "billing").stdout.splitlines()
    key, line = (row.split(":  ", 1)[1].strip() for row in lines[:2])
    file = tmp_path / "keys"
    file.write_text(f"# keys of this test\n{line}\n")
    known = ApiKeys(file).authenticate(f"Bearer {key}")
    assert known is not None
    assert ("billing", 16) == (known.name, len(known.id))


def test_a_keys_name_must_fit_the_key_file() -> None:
    ended = gateway("key", "new", "two words")
    assert (ended.exit_code, "name" in ended.stderr) == (2, True)


def test_the_settings_are_listed() -> None:
    assert "`GATEWAY_BACKEND__URLS`" in gateway("settings").stdout
    assert "#GATEWAY_PORT=8000" in gateway("settings", "--env").stdout


def test_a_policy_is_published_shown_and_in_the_history(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"GATEWAY_REDIS__URL": redis_server.url, "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path), "COLUMNS": "200"}
    assert gateway("policy", "set", "--reason", "nothing", **settings).exit_code == 2
    published = gateway("policy", "set", "--n", "2", "--temperature", "0.5", "--reason", "cheaper", **settings)
    assert published.exit_code == 0, published.stderr
    refused = gateway("policy", "set", "--n", "99", "--reason", "too much", **settings)
    assert (refused.exit_code, "n" in refused.stderr) == (2, True)
    assert "cheaper" in gateway("policy", "show", **settings).stdout
    assert "cheaper" in gateway("policy", "history", **settings).stdout


def test_a_second_policy_is_set_shown_changed_and_ended(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 250)  # COLUMNS works only before the first import
    settings = {"GATEWAY_REDIS__URL": redis_server.url, "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path)}

    def publish(*options: str) -> Result:
        return gateway("policy", "set", "--reason", "by hand", *options, **settings)

    refused = publish("--canary-adapter", "rft-1")
    assert (2, True) == (refused.exit_code, "canary.share" in refused.stderr)
    pool = ("--canary-urls", "http://new-0:80,http://new-1:80/")
    started = publish("--canary-share", "0.1", "--canary-adapter", "rft-1", "--canary-n", "2", *pool)
    assert 0 == started.exit_code, started.stderr
    widened = publish("--canary-share", "0.5")
    assert 0 == widened.exit_code, widened.stderr
    shown = gateway("policy", "show", **settings).stdout
    facts = ("rft-1 at http://new-0:80, http://new-1:80", "canary 50.0%", "version 1")
    assert [] == [fact for fact in facts if fact not in shown], shown
    assert 0 == publish("--canary-share", "0").exit_code
    assert "canary" not in gateway("policy", "show", **settings).stdout
    assert "canary 10.0%" in gateway("policy", "history", **settings).stdout


def test_keeping_n_with_another_adapter_is_a_warning(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"GATEWAY_REDIS__URL": redis_server.url, "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path)}
    command = ("policy", "set", "--reason", "by hand", "--adapter", "rft-1")
    assert "N stays 4" in gateway(*command, **settings).stderr
    assert "" == gateway(*command, "--adapter", "", "--n", "8", "--urls", "http://a", **settings).stderr


async def test_a_running_gateway_loads_a_new_policy_within_seconds(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"GATEWAY_REDIS__URL": redis_server.url, "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path)}
    async with serving(redis_server, tmp_path, GATEWAY_POLICY__REFRESH_S="0.1") as served:
        before = (await served.chat()).json()["best_of_n"]
        command = ("policy", "set", "--n", "2", "--exploration", "0", "--reason", "test")
        published = await asyncio.to_thread(gateway, *command, **settings)
        assert published.exit_code == 0, published.stderr
        async with asyncio.timeout(10):
            while "ratchet_policy_version 1.0" not in (await served.http.get("/metrics")).text:
                await asyncio.sleep(0.05)
        after = (await served.chat()).json()["best_of_n"]
    assert (before["policy"], after["policy"], after["n"]) == (0, 1, 2)


async def test_sigterm_lets_the_race_finish_and_flushes_the_journal(redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_server, tmp_path, Knobs(latency_ms=500)) as served:
        racing = asyncio.create_task(served.chat(best_of=3))
        await served.tgi.state.until(lambda state: state.generating == 3)
        served.process.send_signal(signal.SIGTERM)
        answer = await racing
        status = await served.process.wait()
        [record] = await served.records(1)
    # uvicorn finishes and then ends by the signal it got, as supervisors expect.
    assert (answer.status_code, status) == (200, -signal.SIGTERM)
    assert record.id == answer.json()["id"]


async def test_a_race_that_outlasts_the_shutdown_gets_a_503(redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_server, tmp_path, Knobs(latency_ms=60_000), GATEWAY_SHUTDOWN_S="1") as served:
        racing = asyncio.create_task(served.chat(best_of=2))
        await served.tgi.state.until(lambda state: state.generating == 2)
        served.process.send_signal(signal.SIGTERM)
        answer = await racing
        await served.process.wait()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


async def test_several_workers_serve_and_share_their_metrics(redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_server, tmp_path, GATEWAY_WORKERS="2") as served:
        await until_all_listen(int(served.url.rpartition(":")[2]), workers=2)
        answers = await asyncio.gather(*(served.chat(best_of=2) for _ in range(12)))
        assert [answer.status_code for answer in answers] == [200] * 12
        assert 'ratchet_selections_total{selection="scored"} 12.0' in (await served.http.get("/metrics")).text
        records = await served.records(12)
    assert {record.id for record in records} == {answer.json()["id"] for answer in answers}


async def test_workers_end_with_a_supervisor_that_is_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    async with serving(redis_server, tmp_path, GATEWAY_WORKERS="2") as served:
        served.process.kill()
        async with asyncio.timeout(30):
            while await _listens(served.url):
                await asyncio.sleep(0.05)


async def _listens(url: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False) as client:  # a new connection, because old ones can outlive the port
        try:
            await client.get(f"{url}/health/live")
        except httpx2.TransportError:
            return False
    return True


def test_every_command_and_option_has_a_help_text() -> None:
    assert [] == without_help(get_command(cli), "gateway")
    assert "serve" in gateway("--help").stdout


def without_help(command: Any, name: str) -> list[str]:
    """Return the names of the commands and options that have no help text."""
    inner = [found for key, each in getattr(command, "commands", {}).items() for found in without_help(each, key)]
    options = [f"{name} {option.name}" for option in command.params if not getattr(option, "help", "")]
    return [*([] if command.help else [name]), *options, *inner]
