"""The key file: its lines, and the errors of bad ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.api.keyfile import Limits, Scope, new_key, parse
from gateway.errors import SettingsError

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
PATH = Path("keys")


def test_scopes_and_limits_are_optional() -> None:
    content = f"plain {DIGEST}\nops {OTHER} races_in_flight=2 scopes=admin,chat tokens_per_minute=900  # night shift"
    plain, ops = parse(content.encode(), PATH)
    assert (frozenset({Scope.CHAT, Scope.FEEDBACK}), Limits()) == (plain.scopes, plain.limits)
    assert (frozenset({Scope.CHAT, Scope.ADMIN}), Limits(0, 900, 2)) == (ops.scopes, ops.limits)


def test_a_new_keys_line_has_the_scopes_and_limits_given() -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": 0, "races_in_flight": 4}
    _, line = new_key("app", scopes="feedback,chat", limits=limits)
    [key] = parse(line.encode(), PATH)
    assert ("app", Limits(60, 0, 4), line) == (key.name, key.limits, key.line)
    assert {Scope.CHAT, Scope.FEEDBACK} == key.scopes


def test_no_two_keys_are_the_same() -> None:
    assert new_key("a")[0] != new_key("a")[0]


@pytest.mark.parametrize("name", ["", "with space", "a" * 65, "tab\there", "line\nbreak", "#", "ä"])
def test_a_name_that_the_file_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="a key's name"):
        new_key(name)


@pytest.mark.parametrize("name", ["a", "a" * 64, "A-b_c.9"])
def test_a_name_of_up_to_64_letters_is_kept(name: str) -> None:
    [key] = parse(new_key(name)[1].encode(), PATH)
    assert name == key.name


@pytest.mark.parametrize(
    ("count", "read"), [("0", False), ("1", True), ("9" * 12, True), ("9" * 13, False), ("01", False)]
)
@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "races_in_flight"])
def test_a_limit_is_a_whole_number_of_up_to_12_digits(limit: str, count: str, read: bool) -> None:
    content = f"a {DIGEST} {limit}={count}".encode()
    if read:
        assert Limits(**{limit: int(count)}) == parse(content, PATH)[0].limits
    else:
        with pytest.raises(SettingsError, match=f"keys, line 1: {limit} must be a whole number of at least 1"):
            parse(content, PATH)


def test_a_keys_line_and_id_are_those_of_its_hash() -> None:
    content = f"ops {OTHER} races_in_flight=2 scopes=admin,chat tokens_per_minute=900"
    [key] = parse(content.encode(), PATH)
    assert f"ops {OTHER} scopes=chat,admin tokens_per_minute=900 races_in_flight=2" == key.line
    assert "b" * 16 == key.id
    assert bytes.fromhex("b" * 64) == key.digest


def test_a_secret_is_its_prefix_and_32_random_bytes() -> None:
    secret, line = new_key("app")
    assert (3 + 43, "rk-") == (len(secret), secret[:3])
    assert f"app sha256:{hashlib.sha256(secret.encode()).hexdigest()} scopes=chat,feedback" == line


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="scopes are chat, feedback, admin"):
        new_key("a", scopes="chat,root")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no key"),
        (b"# nobody yet\n", "holds no key"),
        (b"app rk-plain-text-key\n", "line 1: expected"),
        (b"\napp sha256:abc\n", "line 2: expected"),
        (b"app\n", "line 1: expected"),
        (b"\xff\xfe", "cannot be read"),
        (f"a/b {DIGEST}".encode(), "line 1: a key's name"),
        (f"a {DIGEST}\nb {DIGEST}".encode(), "line 2: it repeats the key of a"),
        (f"a {DIGEST} scope=chat".encode(), "line 1: unknown option scope;"),
        (f"a {DIGEST} scopes=".encode(), "line 1: scopes are"),
        (f"a {DIGEST} scopes=chat scopes=admin".encode(), "line 1: scopes twice"),
        (
            f"a {DIGEST} requests_per_minute=0".encode(),
            "line 1: requests_per_minute must be a whole number of at least 1",
        ),
        (f"a {DIGEST} races_in_flight=-1".encode(), "line 1: races_in_flight must be"),
        (f"a {DIGEST} tokens_per_minute=many".encode(), "line 1: tokens_per_minute must be"),
    ],
)
def test_an_error_names_the_file_and_the_line(content: bytes, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse(content, PATH)
