"""The output and exit codes of ``watch`` and ``rollback``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner, Result

from distill.cli.rollback import rollback
from distill.cli.watch import watch
from distill.promotion.policies import promote_canary, start_canary
from gateway.journal.record import encode
from gateway.policy import PolicyStore
from gateway.settings import variables
from gateway.types import Arm
from tests.distill.promotion.traffic import record
from tests.redis_server import RedisServer

NEW = Arm("canary", "rft-1", 1)
app = typer.Typer()
app.command()(watch)
app.command()(rollback)


@pytest.fixture
def environment(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    return {
        "GATEWAY_REDIS__URL": redis_server.url,
        "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path / "spool"),
        "GATEWAY_POLICY__N": "8",
        "DISTILL_PROMOTION__GUARD_FILE": str(tmp_path / "guard.json"),
        "DISTILL_PROMOTION__CANARY_REQUESTS": "30",
    }


async def distill(environment: dict[str, str], *arguments: str) -> Result:
    """Run one command in a thread, because it starts its own event loop."""
    env = {**dict.fromkeys(variables()), **environment}
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)


def put(redis_server: RedisServer, new: float, pairs: int = 60) -> None:
    with redis_server.client() as client:
        for _ in range(pairs):
            for one in (
                record([1.0, 2.0] * 4, Arm("stable", None, 8), policy_version=1),
                record([new], NEW, policy_version=1),
            ):
                client.xadd("ratchet:journal", {"id": one.id, "data": encode(one)})


async def canary(store: PolicyStore) -> None:
    await start_canary(store, NEW, share=0.4, trial="night-1", reason="gate passed")


async def test_watch_reports_that_no_trial_runs(environment: dict[str, str]) -> None:
    ended = await distill(environment, "watch", "--once")
    assert (0, True) == (ended.exit_code, "no trial under way; policy 0 in force: (base) with N = 8" in ended.stdout)


async def test_waiting_and_promoting_have_exit_code_0(
    environment: dict[str, str], store: PolicyStore, redis_server: RedisServer
) -> None:
    await canary(store)
    waiting = await distill(environment, "watch", "--once")
    assert (0, True) == (waiting.exit_code, "trial night-1, as canary: 0 pairs" in waiting.stdout), waiting.stderr
    put(redis_server, new=5.0)
    promoted = await distill(environment, "watch", "--once")
    assert (0, True) == (promoted.exit_code, "after its promotion" in promoted.stdout)
    assert "rft-1 with N = 1, beside it holdback (base)" in promoted.stdout


async def test_a_rollback_has_its_own_exit_code(
    environment: dict[str, str], store: PolicyStore, redis_server: RedisServer
) -> None:
    await canary(store)
    put(redis_server, new=-5.0)
    ended = await distill(environment, "watch", "--once")
    assert (4, True) == (
        ended.exit_code,
        "roll back; records left out: none; policy 2 in force: (base)" in ended.stdout,
    )


async def test_a_rollback_by_hand_is_in_the_history_with_its_reason(
    environment: dict[str, str], store: PolicyStore
) -> None:
    await canary(store)
    await promote_canary(store, trial="night-1", holdback_share=0.1, reason="good enough")
    ended = await distill(environment, "rollback", "--reason", "complaints")
    assert (0, True) == (ended.exit_code, "rolled back: policy 3 in force: (base) with N = 8" in ended.stdout)
    assert ["complaints", "good enough", "gate passed"] == [policy.reason for policy in await store.history()]
    again = await distill(environment, "rollback")
    assert (1, True) == (again.exit_code, "no promotion to roll back" in again.stderr)


async def test_temporary_and_permanent_errors_have_different_exit_codes(
    environment: dict[str, str], store: PolicyStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    await canary(store)
    unknown = await distill(environment | {"DISTILL_SPEED": "9"}, "watch", "--once")
    bad = await distill(environment | {"GATEWAY_PORT": "x"}, "rollback")
    (tmp_path / "guard.json").write_text("{")
    damaged = await distill(environment, "watch", "--once")
    redis_server.kill()
    away = [await distill(environment, *command) for command in (("watch", "--once"), ("rollback",))]
    assert [2, 2, 2, 75, 75] == [ended.exit_code for ended in (unknown, bad, damaged, *away)]
    assert "damaged" in damaged.stderr


async def test_sigterm_ends_watch_with_exit_code_0(
    environment: dict[str, str], store: PolicyStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    """After it counted the records so far."""
    await canary(store)
    put(redis_server, new=2.0, pairs=5)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DISTILL_"))}
    program = "import typer; from distill.cli.watch import watch; typer.run(watch)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=kept | environment)
    async with asyncio.timeout(60):
        while not (tmp_path / "guard.json").exists():
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert 0 == await process.wait()


def test_a_second_watch_does_not_start(environment: dict[str, str], tmp_path: Path) -> None:
    """Two guards with one file would each count half of the records."""
    with FileLock(tmp_path / "guard.json.lock"):
        ended = CliRunner().invoke(app, ["watch"], env={**dict.fromkeys(variables()), **environment})
    assert (3, True) == (ended.exit_code, "another guard is at work" in ended.stderr)
