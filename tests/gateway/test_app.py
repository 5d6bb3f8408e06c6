"""The composition root: it refuses bad settings, and starts and stops all parts."""

import asyncio
import threading
from pathlib import Path

import pytest

from gateway.app import build, create_app
from gateway.errors import SettingsError
from gateway.settings import Settings
from tests.redis_server import RedisServer
from tests.serving import Serve


def test_a_gateway_without_a_reward_model_does_not_start() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REWARD__MODEL"):
        create_app(Settings())


def test_a_bad_key_file_is_fatal(tmp_path: Path) -> None:
    settings = Settings.model_validate({"reward": {"url": "http://reward"}, "api": {"keys_file": tmp_path / "none"}})
    with pytest.raises(SettingsError, match="cannot be read"):
        create_app(settings)


@pytest.mark.parametrize(
    "reward", [{"model": "some/model"}, {"url": "http://127.0.0.1:1", "tokenizer": "some/tokenizer"}]
)
def test_building_starts_no_thread_and_loads_no_model(
    reward: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``serve`` builds once to find mistakes, and each worker builds again."""
    threads = set(threading.enumerate())
    for loader in ("gateway.reward.local.LocalScorer._load", "gateway.reward.remote._load_renderer"):
        monkeypatch.setattr(loader, lambda *_: pytest.fail("loaded by building"))
    build(Settings.model_validate({"reward": reward, "journal": {"spool_dir": tmp_path}}))
    assert threads == set(threading.enumerate())


async def test_metrics_count_served_requests(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve(policy={"n": 2})
    await served.chat()
    await served.chat(temperature=9)
    text = (await served.http.get("/metrics")).text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'ratchet_selections_total{selection="scored"} 1.0' in text
    assert 'ratchet_errors_total{kind="InvalidRequest"} 1.0' in text
    assert "ratchet_policy_n 2.0" in text
    async with asyncio.timeout(10):  # looked at once a second
        while "ratchet_redis_connected 1.0" not in (await served.http.get("/metrics")).text:
            await asyncio.sleep(0.05)


async def test_every_answer_carries_a_request_id(serve: Serve) -> None:
    served = await serve()
    own = await served.http.get("/health/live", headers={"x-request-id": "trace-1"})
    malformed = await served.http.get("/health/live", headers={"x-request-id": "two words"})
    assert own.headers["x-request-id"] == "trace-1"
    assert malformed.headers["x-request-id"] not in {"", "two words"}


async def test_a_defect_is_a_500_without_its_traceback(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    served = await serve()
    monkeypatch.setattr("gateway.best_of_n.answering.make_plan", broken)
    response = await served.chat()
    assert (response.status_code, response.json()["error"]["type"]) == (500, "internal_error")
    assert "secret" not in response.text
    monkeypatch.undo()
    assert (await served.chat()).status_code == 200
