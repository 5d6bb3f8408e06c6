"""The surroundings of a night in tests: stubs of the backend and the reward model, Redis, races in the journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gateway.settings import RedisSettings
from gateway.types import Message
from tests.distill.dataset.records import candidate, publish, race
from tests.redis_server import RedisServer

PROMPTS = 60


def environment(folder: Path, *, tgi_url: str, reward_url: str, redis_url: str, model: Path) -> dict[str, str]:
    """Return the environment of a small night that keeps everything in one folder."""
    return {
        "ATTEMPTS_LOG": str(folder / "attempts.log"),
        "OMP_NUM_THREADS": "1",
        "GATEWAY_BACKEND__URLS": tgi_url,
        "GATEWAY_REWARD__URL": reward_url,
        "GATEWAY_REDIS__URL": redis_url,
        "GATEWAY_JOURNAL__SPOOL_DIR": str(folder / "spool"),
        "GATEWAY_POLICY__N": "4",
        "GATEWAY_POLICY__DEFAULT_TEMPERATURE": "0.7",
        "DISTILL_DATASET__ARCHIVE_DIR": str(folder / "archive"),
        "DISTILL_DATASET__HELD_OUT_SHARE": "0.4",
        "DISTILL_TRAINING__MODEL": str(model),
        "DISTILL_TRAINING__RANK": "4",
        "DISTILL_TRAINING__EPOCHS": "1",
        "DISTILL_TRAINING__LEARNING_RATE": "0.01",
        "DISTILL_TRAINING__CHECKPOINTS": "1",
        "DISTILL_EVALUATION__DRAWS": "4",
        "DISTILL_EVALUATION__TEMPERATURES": "0.7,1.0",
        "DISTILL_EVALUATION__MAX_TOKENS": "48",
        "DISTILL_EVALUATION__MAX_LENGTH_CHANGE": "5",
        "DISTILL_EVALUATION__ALPHA": "0.2",
        "DISTILL_EVALUATION__DRAWS_DIR": str(folder / "draws"),
        "DISTILL_PROMOTION__ADAPTERS_DIR": str(folder / "adapters"),
        "DISTILL_NIGHT__RUNS_DIR": str(folder / "runs"),
        "DISTILL_NIGHT__MIN_EXAMPLES": "8",
        "DISTILL_NIGHT__METRICS_FILE": str(folder / "night.prom"),
    }


def log_races(server: RedisServer, settings: RedisSettings, *, start: int = 0, count: int = PROMPTS) -> None:
    """Add races to the journal's stream: prompts without common words; in each race the last answer is best."""
    records = []
    for number in range(start, start + count):
        draws = [replace(candidate(k, float(k)), text=f"Answer {k} to {number}.") for k in range(3)]
        records.append(race(f"chatcmpl-{number}", prompt=f"q{number} w{number} e{number}?", candidates=draws))
    with server.client() as client:
        publish(client, settings, records)


def conversation(*turns: str) -> list[Message]:
    """Return a conversation in which user and assistant take turns."""
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(turns)]
