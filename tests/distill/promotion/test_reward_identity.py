"""Identity of the reward model: by its files, or by its rewards for the probes; observed once a minute at most."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.reward_probes import PROBES
from distill.promotion import reward_identity
from distill.promotion.reward_identity import RewardIdentity, same_identity
from distill.training.base_files import base_digest
from gateway.errors import RewardError
from gateway.settings import RewardSettings
from tests.gateway.best_of_n.fakes import FakeScorer

SERVER = RewardSettings(url="http://reward")


@dataclass
class Closing(FakeScorer):
    """Counts how often it was closed."""

    closed: int = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    return tmp_path


async def test_a_local_models_identity_is_the_digest_of_its_files(folder: Path) -> None:
    adapter = folder / "adapter"
    digests = [base_digest(str(folder)), base_digest(str(adapter))]
    bare, adapted = RewardSettings(model=str(folder)), RewardSettings(model=str(folder), adapter=adapter)
    assert hashlib.sha256(digests[0].encode()).hexdigest() == await RewardIdentity(bare).observe()
    assert hashlib.sha256(" ".join(digests).encode()).hexdigest() == await RewardIdentity(adapted).observe()
    assert await RewardIdentity(RewardSettings()).observe() is None


@pytest.mark.parametrize(("every_s", "observed"), [(60.0, False), (-1.0, True)])
async def test_it_is_observed_once_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, observed: bool
) -> None:
    assert 60.0 == reward_identity.OBSERVE_EVERY_S
    monkeypatch.setattr(reward_identity, "OBSERVE_EVERY_S", every_s)
    identity = RewardIdentity(RewardSettings(model=str(folder)))
    assert await identity.observe() is not None
    assert observed == (await identity.observe() is not None)


async def test_a_servers_identity_is_its_rewards_for_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is made once, and closed in the end."""
    scorer = Closing(lambda text: float(len(text)))
    built: list[RewardSettings] = []
    monkeypatch.setattr(reward_identity, "OBSERVE_EVERY_S", -1.0)

    def build(settings: RewardSettings) -> Closing:
        built.append(settings)
        return scorer

    monkeypatch.setattr(reward_identity, "build_scorer", build)
    identity = RewardIdentity(SERVER)
    await identity.aclose()
    for _ in range(2):
        assert [float(len(answer)) for _, answer in PROBES] == await identity.observe()
    await identity.aclose()
    assert ([SERVER], 1) == (built, scorer.closed)


async def test_a_server_that_does_not_answer_has_no_identity_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_identity, "build_scorer", lambda _: FakeScorer(lambda _: RewardError("down")))
    assert await RewardIdentity(SERVER).observe() is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("abc", "abc", True),
        ("abc", "abd", False),
        ([-50.0, 50.0], [-50.0, 50.5], True),
        ([-50.0, 50.0], [-50.0, 52.0], False),
        ("abc", [1.0], False),
        ([1.0], "abc", False),
    ],
)
def test_digests_are_equal_and_rewards_within_their_tolerance(one: Any, other: Any, same: bool) -> None:
    assert same == same_identity(one, other)
