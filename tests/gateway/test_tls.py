"""TLS to all servers behind the gateway, with a private CA, a client certificate and an ACL user."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.exceptions import RedisError

from distill.nightly.dry_run import _backlog
from gateway.api.keyfile import new_key
from gateway.backend.pool import BackendPool
from gateway.errors import BackendUnreachable, JournalError, RewardError, SettingsError
from gateway.journal.link import StreamLink
from gateway.journal.reader import JournalReader
from gateway.journal.stream import StreamTail
from gateway.redis_client import connect
from gateway.reward.remote import RemoteScorer
from gateway.settings import BackendSettings, RedisSettings, RewardSettings
from gateway.tls import client_context
from gateway.types import Message, Prompt, Sampling
from tests.redis_server import RedisServer
from tests.serving import Serve
from tests.stubs.reward import RewardStub
from tests.stubs.tgi import TgiStub
from tests.tls_front import Authority, Streams, tls_front

USER, PASSWORD = "ratchet", "p@ss/w:rd"
HELLO: list[Message] = [{"role": "user", "content": "Hi"}]
# The permissions that the gateway and the night need. SECURITY.md has the same.
ACL = (
    f"on >{PASSWORD} ~ratchet:* +@read +@write +@transaction +@scripting +@connection -@dangerous +info +time +waitaof"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


async def _socket(server: RedisServer) -> Streams:
    return await asyncio.open_unix_connection(server.url.removeprefix("unix://"))


async def _http(url: str) -> Streams:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def _locked(server: RedisServer) -> None:
    """Allow only the ACL user from now on."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", USER, *ACL.split())
        client.execute_command("ACL", "SETUSER", "default", "off")


def _settings(port: int, authority: Authority) -> RedisSettings:
    return RedisSettings(
        url=f"rediss://127.0.0.1:{port}/0",
        username=USER,
        password=PASSWORD,
        ca_file=authority.ca_file,
        cert_file=authority.cert_file,
        key_file=authority.key_file,
    )


async def test_every_redis_client_works_with_tls_certificate_and_acl_user(
    redis_server: RedisServer, authority: Authority
) -> None:
    _locked(redis_server)
    async with tls_front(authority, functools.partial(_socket, redis_server), client_needed=True) as port:
        settings = _settings(port, authority)
        link = StreamLink(settings)
        await link.connect()
        assert (1, None) == await link.add([(b"id", b"data")])
        assert await link.confirm()
        await link.close()
        reader = JournalReader(settings, group="night", consumer="one")
        await reader.start()
        await reader.aclose()
        tail = StreamTail(settings)
        assert 1 == len(await tail.read("0"))
        await tail.aclose()
        assert 1 == await asyncio.to_thread(_backlog, settings)


async def test_a_whole_gateway_runs_over_tls(
    serve: Serve, redis_server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    """Races, rewards, records, the policy and a key's limits, with the fewest permissions of the ACL user."""
    key, line = new_key("app", limits={"requests_per_minute": 100, "tokens_per_minute": 10**6, "races_in_flight": 2})
    (tmp_path / "keys").write_text(line)
    async with (
        TgiStub() as tgi,
        RewardStub() as rewards,
        tls_front(authority, functools.partial(_http, tgi.url)) as backend_port,
        tls_front(authority, functools.partial(_http, rewards.url)) as reward_port,
        tls_front(authority, functools.partial(_socket, redis_server), client_needed=True) as redis_port,
    ):
        served = await serve(
            backend={"urls": (f"https://127.0.0.1:{backend_port}",), "ca_file": authority.ca_file},
            reward={"url": f"https://127.0.0.1:{reward_port}", "ca_file": authority.ca_file},
            redis=_settings(redis_port, authority).model_dump(),
            api={"keys_file": tmp_path / "keys"},
        )
        with redis_server.client() as admin:
            admin.execute_command("ACL", "SETUSER", USER, *ACL.split())
            answer = await served.chat(best_of=3, headers={"Authorization": f"Bearer {key}"})
            assert (200, "scored") == (answer.status_code, answer.json()["best_of_n"]["selection"])
            async with asyncio.timeout(20):
                while not (await asyncio.to_thread(admin.exists, "ratchet:journal")):
                    await asyncio.sleep(0.05)
            assert 1 == len(admin.keys("ratchet:limits:*:buckets"))


@pytest.mark.parametrize("wrong", ["no certificate of its own", "another CA", "the server's name", "plain redis://"])
async def test_an_unverified_redis_is_not_used(
    redis_server: RedisServer, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.make(tmp_path / "other")
    name = "elsewhere.test" if wrong == "the server's name" else "127.0.0.1"
    async with tls_front(
        authority, functools.partial(_socket, redis_server), name=name, client_needed=wrong.startswith("no")
    ) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        settings = {
            "no certificate of its own": RedisSettings(url=url, ca_file=authority.ca_file),
            "another CA": RedisSettings(url=url, ca_file=other.ca_file),
            "the server's name": RedisSettings(url=url, ca_file=authority.ca_file),
            "plain redis://": RedisSettings(url=f"redis://127.0.0.1:{port}/0"),
        }[wrong]
        async with connect(settings) as client:
            with pytest.raises((RedisError, OSError)):
                await client.set("ratchet:policy", "{}")
    with redis_server.client() as admin:
        assert [] == admin.keys()


async def test_the_acl_user_may_use_only_this_projects_keys(redis_server: RedisServer) -> None:
    _locked(redis_server)
    for username, password in (("", ""), (USER, "guess")):
        async with connect(RedisSettings(url=redis_server.url, username=username, password=password)) as stranger:
            with pytest.raises(RedisError):
                await stranger.get("ratchet:policy")
    async with connect(RedisSettings(url=redis_server.url, username=USER, password=PASSWORD)) as ours:
        await ours.set("ratchet:policy", "{}")
        for command in (("GET", "another:key"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await ours.execute_command(*command)  # type: ignore[no-untyped-call]


async def test_a_backend_and_a_reward_server_of_another_ca_get_no_request(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.make(tmp_path / "other")
    async with (
        TgiStub() as tgi,
        RewardStub() as rewards,
        tls_front(authority, functools.partial(_http, tgi.url)) as backend_port,
        tls_front(authority, functools.partial(_http, rewards.url)) as reward_port,
    ):
        for ca_file in (other.ca_file, None):
            backend = BackendSettings(urls=(f"https://127.0.0.1:{backend_port}",), ca_file=ca_file)
            async with BackendPool(backend) as pool:
                with pytest.raises(BackendUnreachable):
                    await pool.complete(
                        Prompt([{"role": "user", "content": "Hi"}], Sampling(), None), seed=1, replica=0
                    )
            scorer = RemoteScorer(RewardSettings(url=f"https://127.0.0.1:{reward_port}", ca_file=ca_file))
            with pytest.raises(RewardError):
                await scorer.score(HELLO, "Hello")
            await scorer.aclose()
        assert [] == list(tgi.state.requests)


def test_a_wrong_ca_file_is_fatal_and_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        with pytest.raises(SettingsError, match=path.name):
            client_context(path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"url": "redis://a", "ca_file": "ca.pem"}, "without TLS they would protect nothing"),
        ({"url": "rediss://a", "cert_file": "c.pem"}, "set together"),
        ({"url": "rediss://a", "key_file": "k.pem"}, "set together"),
    ],
)
def test_contradicting_tls_settings_are_fatal(fields: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RedisSettings.model_validate(fields)


def test_a_password_is_not_shown() -> None:
    assert PASSWORD not in repr(RedisSettings(password=PASSWORD))


async def test_a_journal_without_permission_is_a_journal_error(redis_server: RedisServer) -> None:
    _locked(redis_server)
    reader = JournalReader(RedisSettings(url=redis_server.url), group="night", consumer="one")
    with pytest.raises(JournalError):
        await reader.start()
    await reader.aclose()
