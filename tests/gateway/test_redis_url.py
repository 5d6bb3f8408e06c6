"""A bad Redis URL is refused in one line that names the setting and repeats no part of the URL."""

from __future__ import annotations

import pytest

from gateway.errors import SettingsError
from gateway.settings import RedisSettings, load

SECRET = "p4ss"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:1",
        "redis://h:65535/",
        "redis://h:6379/0",
        "redis://user:p%23w%2F%40@h:6379/15",
        "redis://:pa@ss@h:6379/0",
        "rediss://[::1]:6380/0",
        "unix:///tmp/redis.sock",
        "unix:///tmp/redis.sock?db=1",
        "redis://h/0?socket_keepalive=true",
    ],
)
def test_urls_of_one_redis_are_accepted_unchanged(url: str) -> None:
    assert url == RedisSettings(url=url).url == RedisSettings(url=f" {url}\n").url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "a URL is needed like redis://"),
        (f"127.0.0.1:6379/{SECRET}", "a URL is needed like redis://"),
        (f"{SECRET}:6379", "a URL is needed like redis://"),
        (f"http://:{SECRET}@h", "a URL is needed like redis://"),
        (f"redis:/{SECRET}", "a URL is needed like redis://"),
        (f"redis://:{SECRET}@/0", "a URL is needed like redis://"),
        ("unix://", "a URL is needed like redis://"),
        (f"redis://:{SECRET}#word@h:6379/0", "in user and password write / ? # @ : % as"),
        (f"redis://:{SECRET}/word@h:6379/0", "in user and password write"),
        (f"redis://:12?{SECRET}@h:6379/0", "in user and password write"),
        (f"redis://[::1/{SECRET}", "in user and password write"),
        (f"redis://h:{SECRET}/0", "in user and password write"),
        ("redis://h:0/0", "in user and password write"),
        ("redis://h:65536/0", "in user and password write"),
        (f"redis://h/{SECRET}", "in user and password write"),
        (f"redis+sentinel://:{SECRET}@h/0", "Redis Sentinel and Redis Cluster are not supported"),
        (f"redis-sentinel://:{SECRET}@h/main", "Redis Sentinel and Redis Cluster are not supported"),
        (f"rediss+cluster://:{SECRET}@h", "Redis Sentinel and Redis Cluster are not supported"),
        (f"redis://:{SECRET}@a:1,b:2,c:3/0", "Redis Sentinel and Redis Cluster are not supported"),
        (f"redis://h/0?{SECRET}=1", "an option after the ? is unknown"),
        (f"redis://h/0?socket_timeout={SECRET}", "an option after the ? is unknown"),
    ],
)
def test_other_urls_are_refused_without_repeating_the_password(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS__URL", url)
    with pytest.raises(SettingsError) as raised:
        load()
    words = raised.value.message
    assert words.startswith("bad settings: GATEWAY_REDIS__URL: ")
    assert said in words
    assert SECRET not in words
    assert "\n" not in words
    assert None is raised.value.__cause__


def test_printed_settings_hold_no_password() -> None:
    assert SECRET not in repr(RedisSettings(url=f"redis://:{SECRET}@h/0", password=SECRET))
