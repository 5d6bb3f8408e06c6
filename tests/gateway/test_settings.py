"""Settings are read from the environment and frozen; unknown or bad ones end the start and are named."""

import os

import pytest
from pydantic import ValidationError

from gateway.errors import SettingsError
from gateway.settings import Settings, load, variables


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)


def test_groups_are_read_from_variables_with_two_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_BACKEND__KIND", "vllm")
    monkeypatch.setenv("GATEWAY_BACKEND__URLS", "http://a:1/, http://b:2")
    monkeypatch.setenv("GATEWAY_API__MODELS", "small,large")
    settings = load()
    assert (settings.backend.kind, settings.backend.urls) == ("vllm", ("http://a:1", "http://b:2"))
    assert settings.api.models == ("small", "large")


@pytest.mark.parametrize(
    ("url", "urls"),
    [("", ()), ("http://a:1/", ("http://a:1",)), ("http://a:1, https://b", ("http://a:1", "https://b"))],
)
def test_a_reward_url_may_name_several_servers(
    monkeypatch: pytest.MonkeyPatch, url: str, urls: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GATEWAY_REWARD__URL", url)
    assert urls == load().reward.urls


def test_an_unknown_variable_is_fatal_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_BACKEND__URL", "http://a")
    with pytest.raises(SettingsError, match="GATEWAY_BACKEND__URL "):
        load()


def test_a_setting_of_an_earlier_release_is_ignored_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The processes that this one starts inherit an environment without it."""
    monkeypatch.setenv("GATEWAY_REWARD__MAX_QUEUE", "no number")
    monkeypatch.setenv("gateway_backend__max_connections", "5")
    assert Settings.model_construct() == load()
    load()
    (message,) = caplog.messages
    assert "GATEWAY_REWARD__MAX_QUEUE, gateway_backend__max_connections" in message
    assert "GATEWAY_REWARD__MAX_QUEUE" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_PORT", "http"),
        ("GATEWAY_PORT", "70000"),
        ("GATEWAY_BACKEND__KIND", "ollama"),
        ("GATEWAY_BACKEND__URLS", "localhost:8080"),
        ("GATEWAY_BACKEND__URLS", " , "),
        ("GATEWAY_REWARD__URL", "reward:8001"),
        ("GATEWAY_REWARD__URL", "http://a:1,reward:8001"),
        ("GATEWAY_REWARD__URL", " , "),
        ("GATEWAY_API__MODELS", ""),
        ("GATEWAY_POLICY__N", "0"),
        ("GATEWAY_POLICY__EXPLORATION", "nan"),
        ("GATEWAY_RACE__DEADLINE_S", "-1"),
        ("GATEWAY_JOURNAL__DURABILITY", "maybe"),
        ("GATEWAY_TRACING__ENDPOINT", "collector:4317"),
    ],
)
def test_a_bad_value_is_fatal_and_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load()


def test_a_model_and_a_server_for_rewards_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_REWARD__MODEL", "some/model")
    monkeypatch.setenv("GATEWAY_REWARD__URL", "http://reward")
    with pytest.raises(SettingsError, match="GATEWAY_REWARD"):
        load()


def test_listening_beyond_loopback_needs_api_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="GATEWAY_API__KEYS_FILE"):
        load()
    monkeypatch.setenv("GATEWAY_API__KEYS_FILE", "keys.txt")
    assert load().host == "0.0.0.0"


def test_the_policy_cannot_ask_for_more_than_the_race_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_POLICY__N_MAX", "32")
    with pytest.raises(SettingsError, match="GATEWAY_RACE__BEST_OF_MAX"):
        load()


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_every_variable_says_what_it_means() -> None:
    assert [name for name, (_, meaning) in variables().items() if not meaning] == []
