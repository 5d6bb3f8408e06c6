"""Redis that holds foreign data, or sends replies that are none."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import orjson

from distill.dataset.collect import collect
from distill.settings import DatasetSettings
from gateway.journal.stream import stream_key
from gateway.settings import RedisSettings
from loadtests.hostile.case import ANSWER, Case, Target, chat, key, post, words
from loadtests.hostile.impostor import Script

_POLICY, _STREAM, _NIGHT = "ratchet:policy", "ratchet:journal", "night"
_LIMITED = hashlib.sha256(key("limited").encode()).hexdigest()[:16]
_BUCKETS, _RACES = (f"ratchet:limits:{{{_LIMITED}}}:{name}" for name in ("buckets", "races"))
# If Redis is at fault, a caller notices nothing.
_SERVED = words("200 scored")
_CHAT = post(orjson.dumps(chat(best_of=2)), caller="limited")
_GOOD = {"version": 10**6, "n": 2, "n_max": 8}


def _policy(name: str, tried: str, document: Any, allowed: frozenset[str] = _SERVED) -> Case:
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    return Case(f"redis-policy-{name}", tried, allowed, (_CHAT,), stored=(("SET", _POLICY, raw),))


def _stored(name: str, tried: str, *commands: tuple[bytes | str, ...], allowed: frozenset[str] = _SERVED) -> Case:
    return Case(f"redis-{name}", tried, allowed, (_CHAT,), stored=commands)


# A well-formed policy with a dead URL is followed: its backend is then reported as away.
_AWAY = words("200 scored,502,504")
POLICIES = (
    _policy("empty", "A policy of nothing.", b""),
    _policy("garbage", "A policy of every byte there is.", bytes(range(256)) * 10),
    _policy("text", "A policy in words.", ANSWER.encode()),
    _policy("html", "A policy of HTML.", b"<html>" + ANSWER.encode()),
    _policy("list", "A policy that is a list.", [1, 2]),
    _policy("null", "A policy of null.", None),
    _policy("half", "Half a policy.", orjson.dumps(_GOOD)[:-4]),
    _policy("deep", "A policy nested 100,000 deep.", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    _policy("16mb", "A policy of 16 MB that means nothing.", b'{"reason":"' + b"a" * 2**24),
    _policy("16mb-reason", "A policy with a reason of 16 MB.", {**_GOOD, "reason": "a" * 2**24}),
    _policy("version-minus", "A version below zero.", {**_GOOD, "version": -1}),
    _policy("version-text", "A version in words.", {**_GOOD, "version": ANSWER}),
    _policy("version-2-64", "A version beyond 64 bits.", b'{"version":99999999999999999999,"n":2,"n_max":8}'),
    _policy("version-400-digits", "A version of 400 digits.", b'{"version":%b,"n":2,"n_max":8}' % (b"9" * 400)),
    _policy("version-0", "A version of long ago.", {**_GOOD, "version": 0}),
    _policy("n-0", "An N of zero.", {**_GOOD, "n": 0}),
    _policy("n-million", "An N of a million.", {**_GOOD, "n": 10**6, "n_max": 10**6}),
    _policy("n-over-n-max", "An N over its own bound.", {**_GOOD, "n": 8, "n_max": 2}),
    _policy("exploration", "An exploration of more than all.", {**_GOOD, "exploration": 1.5}),
    _policy("temperature-nan", "A temperature of NaN.", orjson.dumps({**_GOOD, "default_temperature": "@"}).replace(b'"@"', b"NaN")),
    _policy("share", "A canary that takes all.", {**_GOOD, "canary": {"n": 2, "share": 1.0}}),
    _policy("adapter-list", "An adapter that is a list.", {**_GOOD, "adapter": ["a"]}),
    _policy("adapter-path", "An adapter that is a path.", {**_GOOD, "adapter": "../../etc/passwd"}, _AWAY),
    _policy("adapter-huge", "An adapter's name of a megabyte.", {**_GOOD, "adapter": "a" * 2**20}, _AWAY | {"400", "429"}),
    _policy("urls-file", "A file's URL.", {**_GOOD, "urls": ["file:///etc/passwd"]}),
    _policy("urls-gopher", "Another protocol's URL.", {**_GOOD, "urls": ["gopher://127.0.0.1:1/"]}),
    _policy("urls-nobody", "A URL at which nobody listens.", {**_GOOD, "urls": ["http://127.0.0.1:1"]}, _AWAY),
    _policy("urls-port", "A URL with a port beyond 65,535.", {**_GOOD, "urls": ["http://127.0.0.1:99999"]}, _AWAY),
    _policy("urls-port-text", "A URL with a port in words.", {**_GOOD, "urls": ["http://127.0.0.1:port"]}, _AWAY),
    _policy("urls-bracket", "A URL with half an address.", {**_GOOD, "urls": ["http://[::1"]}, _AWAY),
    _policy("urls-blank", "A URL with blanks in its host.", {**_GOOD, "urls": ["http://a b c/"]}, _AWAY),
    _policy("urls-control", "A URL with a line end.", {**_GOOD, "urls": ["http://127.0.0.1:1/\r\nx: y"]}, _AWAY),
    _policy("urls-long", "A URL of 100,000 letters.", {**_GOOD, "urls": ["http://127.0.0.1:1/" + "a" * 100_000]}, _AWAY),
    _policy("urls-idna", "A URL whose host no name service can have.", {**_GOOD, "urls": ["http://" + "é" * 300 + ".x/"]}, _AWAY),
    _policy("urls-dots", "A URL whose host is dots.", {**_GOOD, "urls": ["http://..../"]}, _AWAY),
    _policy("urls-1000", "A thousand URLs.", {**_GOOD, "urls": [f"http://127.0.0.1:1/{index}" for index in range(1000)]}, _AWAY),
    _policy("field-unknown", "A field of a newer program.", {**_GOOD, "new": {"a": ANSWER}}),
    _stored("policy-is-list", "A list where the policy should be.", ("RPUSH", _POLICY, "a", "b")),
    _stored("policy-is-hash", "A hash where the policy should be.", ("HSET", _POLICY, "a", "b")),
    _stored("policy-is-gone", "No policy at all.", ("DEL", _POLICY)),
)  # fmt: skip

KEYS = (
    _stored("stream-is-text", "A text where the stream should be.", ("SET", _STREAM, ANSWER)),
    _stored("stream-is-set", "A set where the stream should be.", ("SADD", _STREAM, "a")),
    _stored("stream-id-last", "A stream whose last id is the greatest there is.",
            ("XADD", _STREAM, "18446744073709551615-18446744073709551615", "a", "b")),
    _stored("buckets-is-text", "A text where a key's buckets should be.", ("SET", _BUCKETS, ANSWER)),
    _stored("buckets-words", "Buckets that are filled with words.",
            ("HSET", _BUCKETS, "requests_per_minute", ANSWER, "tokens_per_minute", ANSWER)),
    _stored("buckets-inf", "Buckets without bound.", ("HSET", _BUCKETS, "requests_per_minute", "inf", "tokens_per_minute", "1e308"),
            allowed=words("200 scored,429")),
    _stored("buckets-nan", "Buckets of no number.", ("HSET", _BUCKETS, "requests_per_minute", "nan", "tokens_per_minute", "nan"),
            allowed=words("200 scored,429")),
    _stored("buckets-minus", "Buckets below zero.", ("HSET", _BUCKETS, "requests_per_minute", "-1e300", "tokens_per_minute", "-5")),
    _stored("races-is-stream", "A stream where a key's races should be.", ("XADD", _RACES, "*", "a", "b")),
    _stored("races-words", "Races that end in words.", ("HSET", _RACES, "a", ANSWER)),
    _stored("races-inf", "Races that never end.", ("ZADD", _RACES, "inf", "a", "inf", "b")),
)  # fmt: skip


def _said(
    name: str, tried: str, reply: bytes, *, when: bytes = b"", then: Any = "keep", more: tuple[bytes, ...] = ()
) -> Case:
    return Case(f"redis-says-{name}", tried, _SERVED, (_CHAT,), redis=Script((reply, *more), when=when, then=then))


_REPLIES = {
    "nothing": ("hangs up without a word", b""),
    "http": ("speaks HTTP", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
    "garbage": ("says every byte there is", bytes(range(256)) * 10),
    "no-number": ("gives a number that is none", b":abc\r\n"),
    "no-length": ("gives a text of no length", b"$abc\r\n"),
    "minus-length": ("gives a text of negative length", b"$-5\r\nhello\r\n"),
    "huge-length": ("gives a text of an exabyte", b"$1000000000000000000\r\nhello"),
    "no-count": ("gives a list of no length", b"*abc\r\n"),
    "deep": ("gives lists in one another without end", b"*1\r\n" * 100_000),
    "number": ("gives a number for everything", b":5\r\n" * 3),
    "null": ("gives nothing for everything", b"$-1\r\n" * 3),
    "list": ("gives a list for everything", b"*2\r\n:1\r\n$1\r\na\r\n"),
    "empty-list": ("gives an empty list for everything", b"*0\r\n"),
    "text": ("gives words for everything", b"+" + ANSWER.encode() + b"\r\n"),
    "error": ("gives an error for everything", b"-ERR " + ANSWER.encode() + b"\r\n"),
    "error-empty": ("gives an error without words", b"-\r\n"),
    "moved": ("sends its callers elsewhere", b"-MOVED 1 127.0.0.1:1\r\n"),
    "push": ("pushes what nobody asked for", b">2\r\n$1\r\na\r\n$1\r\nb\r\n"),
    "bad-text": ("gives a text of no character set", b"$4\r\n\xff\xfe\xfd\xfc\r\n"),
    "resp3": ("gives kinds of the next protocol", b"%1\r\n,nan\r\n(99999999999999999999999\r\n"),
}
_SPECIFIC = {
    "garbage",
    "no-number",
    "deep",
    "number",
    "null",
    "empty-list",
    "text",
    "error",
}  # tried of each command, too
_COMMANDS = {
    "anything": b"",
    "GET": b"\r\nGET\r\n",
    "XADD": b"\r\nXADD\r\n",
    "WAITAOF": b"\r\nWAITAOF\r\n",
    "EVALSHA": b"\r\nEVALSHA\r\n",
}
SAYINGS = (
    *(_said(f"{name}-{command.lower()}", f"Redis {what}, asked for {command}.", reply, when=when,
            then="keep" if reply else "close")
      for name, (what, reply) in _REPLIES.items() for command, when in _COMMANDS.items()
      if command == "anything" or name in _SPECIFIC),
    _said("silent", "Redis takes requests and says nothing.", b"", then="hang"),
    _said("endless-text", "A text of 64 MB where the policy should be.", b"$67108864\r\n", when=_COMMANDS["GET"], then="keep",
          more=(b"a" * 2**26 + b"\r\n",)),
    _said("endless-line", "A line of 64 MB.", b"+", when=_COMMANDS["GET"], then="keep", more=(b"a" * 2**26 + b"\r\n",)),
)  # fmt: skip


def _record(**changes: Any) -> dict[str, Any]:
    """Return a feedback record, the smallest record there is, with some fields changed."""
    rated = {
        "id": "feedback-1",
        "completion_id": "chatcmpl-1",
        "rating": 1.0,
        "comment": None,
        "time_ms": 1,
        "key_id": None,
    }
    return {**rated, "kind": "feedback", "schema_version": 1, **changes}


_RECORDS: dict[str, tuple[str, bytes]] = {
    "empty": ("nothing", b""),
    "garbage": ("every byte there is", bytes(range(256))),
    "text": ("words", b"hello"),
    "null": ("null", b"null"),
    "list": ("a list", b"[]"),
    "kind": ("a kind that nobody knows", orjson.dumps(_record(kind="other"))),
    "kind-list": ("a kind that is a list", orjson.dumps(_record(kind=["feedback"]))),
    "no-fields": ("a completion without fields", b'{"kind":"completion"}'),
    "deep": ("100,000 objects in one another", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "rating-text": ("a rating in words", orjson.dumps(_record(rating="good"))),
    "rating-1e400": ("a rating beyond any number", orjson.dumps(_record(rating="@")).replace(b'"@"', b"1e400")),
    "time-text": ("a time in words", orjson.dumps(_record(time_ms="now"))),
    "time-huge": ("a time of no year", orjson.dumps(_record(time_ms=2**63))),
    "time-minus": ("a time before all years", orjson.dumps(_record(time_ms=-(2**62)))),
    "time-1e20": ("a time beyond 64 bits", orjson.dumps(_record(time_ms="@")).replace(b'"@"', b"100000000000000000000")),
    "id-path": ("an id that is a path", orjson.dumps(_record(id="../../etc/passwd"))),
    "id-megabyte": ("an id of a megabyte", orjson.dumps(_record(id="a" * 2**20))),
    "nul": ("a NUL in a text", orjson.dumps(_record(comment="a\0b"))),
    "surrogate": ("a lone surrogate", orjson.dumps(_record(comment="@")).replace(b'"@"', b'"\\ud800"')),
    "version": ("a version of the far future", orjson.dumps(_record(id="f", schema_version=2**40))),
}  # fmt: skip
_ENTRIES: dict[str, tuple[str, tuple[bytes | str, ...]]] = {
    "no-data": ("no data", ("id", "x")),
    "no-id": ("no id", ("data", b"x")),
    "other-fields": ("other fields", ("a", "b", "c", "d")),
    "id-bytes": ("an id of no character set", ("id", b"\xff\xfe", "data", b"\xff")),
}


def _collected(name: str, what: str, entry: tuple[bytes | str, ...]) -> Case:
    """Collect a stream of its own: a record becomes a row, anything else is kept aside."""

    async def act(target: Target) -> str:
        redis = RedisSettings(url=target.redis_url, key_prefix=_NIGHT)
        with tempfile.TemporaryDirectory() as folder:
            done = await collect(redis, DatasetSettings(archive_dir=Path(folder) / "archive"))
        return "200" if done.collected + len(done.unreadable) == 1 else "500"

    stored = ("XADD", stream_key(_NIGHT), "*", *entry)
    return Case(
        f"redis-record-{name}", f"A record of the journal that is {what}.", words("200"), stored=(stored,), act=act
    )


RECORDS = (
    *(_collected(name, what, ("id", name, "data", raw)) for name, (what, raw) in _RECORDS.items()),
    *(_collected(name, f"an entry with {what}", entry) for name, (what, entry) in _ENTRIES.items()),
)

CASES = (*POLICIES, *KEYS, *SAYINGS, *RECORDS)
