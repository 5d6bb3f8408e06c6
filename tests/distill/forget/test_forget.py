"""Requested data is deleted everywhere, and other data is unchanged."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from distill.__main__ import app
from distill.dataset.archive import Archive
from distill.dataset.collect import collect
from distill.dataset.curate import curate
from distill.dataset.example import Example
from distill.dataset.files import read_examples, write_lines
from distill.dataset.split import conversation_key
from distill.errors import NightError
from distill.evaluation.prompts import Prompt
from distill.evaluation.samples import Sample, read_samples
from distill.forget.forget import Deleted, Places, forget
from distill.forget.targets import Targets
from distill.nightly.start import only_night
from distill.run_dir import RunDir
from distill.settings import DatasetSettings
from gateway.journal.reader import JournalReader
from gateway.journal.record import CompletionRecord, Record
from gateway.settings import RedisSettings
from tests.distill.dataset.records import DAY_MS, NOON, publish, race, rated, user
from tests.redis_server import RedisServer

ALICE, BOB = "a" * 16, "b" * 16


def id_of(number: int) -> str:
    return f"chatcmpl-{number:032x}"


def of(number: int, key_id: str, prompt: str) -> CompletionRecord:
    return race(id_of(number), prompt=prompt, key_id=key_id, time_ms=NOON + number * DAY_MS)


EARLIER: list[Record] = [
    of(1, ALICE, "alice's first"),
    of(2, BOB, "bob's first"),
    of(3, ALICE, "alice's second"),
    replace(rated(id_of(1), 1.0, "feedback-1"), key_id=BOB),  # of an answer to Alice
    replace(rated(id_of(2), 1.0, "feedback-2"), key_id=BOB),
]
LATER: list[Record] = [of(4, ALICE, "alice's third"), of(5, BOB, "bob's second")]


@dataclass(frozen=True, slots=True)
class Kept:
    """All places that keep records, with some records still in the stream."""

    redis: RedisSettings
    archive: Archive
    draws: Path
    runs: Path

    def forget(self, **targets: set[str]) -> Deleted:
        places = Places(self.archive.folder, self.draws, self.runs, self.draws.parent / "spool")
        return forget(self.redis, places, Targets(**targets))

    def ids(self) -> list[str]:
        return sorted(
            [record.id for record in self.archive.completions()] + [record.id for record in self.archive.feedback()]
        )

    def grep(self, text: str) -> list[Path]:
        """Return the files that hold a text; Parquet is decoded."""
        found = [path for path in self.archive.parts() if text in str(_rows(path))]
        others = [*self.draws.rglob("*"), *self.runs.rglob("*"), *self.archive.folder.glob("_quarantine/*")]
        return found + [path for path in others if path.is_file() and text.encode() in path.read_bytes()]


def _rows(path: Path) -> object:
    return pq.read_table(path).to_pylist()


@pytest.fixture
async def kept(redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path) -> Kept:
    made = Kept(redis_settings, Archive(tmp_path / "archive"), tmp_path / "draws", tmp_path / "runs")
    settings = DatasetSettings(archive_dir=made.archive.folder)
    with redis_server.client() as client:
        publish(client, redis_settings, [*EARLIER, b'{"kind": "new", "id": "' + id_of(1).encode() + b'"}'])
        await collect(redis_settings, settings)
        publish(client, redis_settings, LATER)
    curated = curate(made.archive.completions(), [], settings.model_copy(update={"held_out_share": 0.5}))
    write_lines(made.runs / "night-1" / "examples.jsonl", curated.examples)
    write_lines(made.runs / "night-1" / "held_out.jsonl", curated.held_out)
    prompts = [Prompt.of_text(text) for text in ["alice's first", "bob's first", "alice's second"]]
    lines = [Sample(prompt, 1.0, 0, 7, "text", "stop", 3).to_line() for prompt in prompts]
    conversation = json.loads(lines[0]) | {"prompt": "p", "turns": [{"role": "user", "content": "Alice's   FIRST"}]}
    lines.append(json.dumps(conversation).encode() + b"\n")
    made.draws.mkdir()
    (made.draws / "base-1.jsonl").write_bytes(b"".join(lines))
    return made


async def test_a_keys_data_is_deleted_everywhere(kept: Kept, redis_server: RedisServer) -> None:
    assert 3 <= len(kept.grep("alice's")) + len(kept.grep("bob's"))
    done = kept.forget(keys={ALICE})
    assert (1, 3, 1, 3) == (done.stream, done.archive, done.quarantine, done.draws)
    assert sorted([id_of(2), "feedback-2"]) == kept.ids()
    assert [] == kept.grep("alice's") + kept.grep(ALICE) + kept.grep(id_of(1))
    assert ["bob's first"] == [sample.prompt.text for sample in read_samples(kept.draws / "base-1.jsonl")]
    assert all(example.key == conversation_key(user("bob's first")) for example in _examples(kept))
    with redis_server.client() as client:
        assert b"alice" not in b"".join(fields[b"data"] for _, fields in client.xrange("ratchet:journal"))
    collected = await collect(kept.redis, DatasetSettings(archive_dir=kept.archive.folder))
    assert (1, 0) == (collected.completions, collected.feedback)
    assert sorted([id_of(2), id_of(5), "feedback-2"]) == kept.ids()


def _examples(kept: Kept) -> list[Example]:
    return read_examples(kept.runs / "night-1" / "examples.jsonl")


async def test_an_answer_is_deleted_with_its_feedback_everywhere(kept: Kept) -> None:
    done = kept.forget(completions={id_of(1)})
    assert (0, 2, 1, 2) == (done.stream, done.archive, done.quarantine, done.draws)
    assert Deleted(1, 0, 0, 0, 0, 0, 0) == kept.forget(completions={id_of(5)})
    assert sorted([id_of(2), id_of(3), "feedback-2"]) == kept.ids()


async def test_a_conversation_is_deleted_by_its_key(kept: Kept) -> None:
    done = kept.forget(conversations={conversation_key(user("alice's second"))})
    assert (0, 1, 0, 1) == (done.stream, done.archive, done.quarantine, done.draws)
    assert id_of(3) not in kept.ids()


async def test_deleting_twice_or_without_a_match_changes_nothing(kept: Kept) -> None:
    kept.forget(keys={ALICE})
    before = {path: path.read_bytes() for path in kept.archive.parts()}
    for targets in ({"keys": {ALICE}}, {"completions": {id_of(99)}}, {"conversations": {"0" * 32}}):
        assert Deleted(0, 0, 0, 0, 0, 0, 0) == kept.forget(**targets)
    assert before == {path: path.read_bytes() for path in kept.archive.parts()}


async def test_records_claimed_by_a_killed_collecting_pass_are_deleted(kept: Kept) -> None:
    reader = JournalReader(kept.redis, group="night", consumer="killed")
    await reader.start()
    assert 2 == len(await reader.read())
    await reader.aclose()
    kept.forget(keys={ALICE})
    settings = DatasetSettings(archive_dir=kept.archive.folder).model_copy(update={"claim_idle_s": 0.001})
    await collect(kept.redis, settings)
    assert sorted([id_of(2), id_of(5), "feedback-2"]) == kept.ids()


async def test_without_redis_nothing_is_deleted(kept: Kept, redis_server: RedisServer) -> None:
    before = kept.ids()
    redis_server.kill()
    with pytest.raises(NightError, match="not everything is deleted"):
        kept.forget(keys={ALICE})
    assert before == kept.ids()


async def test_the_command_deletes_and_refuses_while_a_night_runs(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS__URL", kept.redis.url)
    monkeypatch.setenv("DISTILL_DATASET__ARCHIVE_DIR", str(kept.archive.folder))
    monkeypatch.setenv("DISTILL_EVALUATION__DRAWS_DIR", str(kept.draws))
    monkeypatch.setenv("DISTILL_NIGHT__RUNS_DIR", str(kept.runs))
    with only_night(kept.runs):
        assert 3 == (await command("--key", ALICE)).exit_code
    for bad in ([], ["--key", "../x"], ["--completion", "chatcmpl-1"], ["--conversation", "*"]):
        assert 2 == (await command(*bad)).exit_code
    assert id_of(1) in kept.ids()
    done = await command("--key", ALICE, "--completion", id_of(5))
    assert 0 == done.exit_code, done.output
    assert sorted([id_of(2), "feedback-2"]) == kept.ids()


async def command(*arguments: str) -> Result:
    """Run ``python -m distill forget`` in a thread, because it starts its own event loop."""
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["forget", *arguments]))


async def test_a_missing_right_in_redis_is_named(kept: Kept, redis_server: RedisServer) -> None:
    """Without the right to rewrite Redis's files the data is deleted, and the output says who can rewrite them."""
    redis_server.configure(appendonly="yes")
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "night", "on", ">secret", "~*", "+@all", "-bgrewriteaof")
    limited = kept.redis.model_copy(update={"username": "night", "password": "secret"})
    done = replace(kept, redis=limited).forget(keys={ALICE})
    assert (1, 3) == (done.stream, done.archive)
    assert any("run BGREWRITEAOF" in words for words in done.unreached), done.unreached


async def test_an_unfinished_training_starts_again_without_deleted_examples(kept: Kept) -> None:
    """Its folder is deleted; a finished training keeps its checkpoints."""
    for name, ended in (("night-1", False), ("night-2", True)):
        run = RunDir(kept.runs / name)
        write_lines(run.path / "examples.jsonl", _examples(kept))
        (run.path / "training").mkdir()
        if ended:
            run.mark("train", {})
    trained = [path for path in kept.runs.glob("*/training") if _has_alice(kept)]
    assert 2 == len(trained)
    kept.forget(keys={ALICE})
    assert [kept.runs / "night-2" / "training"] == list(kept.runs.glob("*/training"))


def _has_alice(kept: Kept) -> bool:
    keys = {conversation_key(user(text)) for text in ("alice's first", "alice's second")}
    return any(example.key in keys for example in _examples(kept))


async def test_collect_deletes_old_records_from_redis_and_the_archive(
    redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = int(time.time() * 1000)
    settings = DatasetSettings(archive_dir=tmp_path / "archive", keep_days=2)
    archive = Archive(settings.archive_dir)
    with redis_server.client() as client:
        publish(client, redis_settings, [race(id_of(n), time_ms=now_ms - n * DAY_MS) for n in range(5)] + [b"junk"])
        slow = JournalReader(redis_settings, group="slow", consumer="one")  # holds back ordinary trimming
        await slow.start()
        await slow.aclose()
        done = await collect(redis_settings, settings)
        assert (5, 2) == (done.completions, done.expired)
        assert [id_of(2), id_of(1), id_of(0)] == [record.id for record in archive.completions()]
        assert 6 == client.xlen("ratchet:journal")  # by Redis's clock they came only now
        later = datetime.now(UTC) + timedelta(days=3)

        async def clock_ms(_: JournalReader) -> int:
            return int(later.timestamp() * 1000)

        monkeypatch.setattr(JournalReader, "clock_ms", clock_ms)
        done = await collect(redis_settings, settings, now=lambda: later)
        assert (0, 9) == (done.completions, done.expired)
        assert 0 == client.xlen("ratchet:journal") == archive.count()
    assert [] == list((settings.archive_dir / "_quarantine").glob("*.json"))


async def test_records_deleted_from_the_stream_are_not_reported_as_lost(
    kept: Kept, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """Neither unread records nor those claimed by a killed pass: they were deleted on purpose."""
    settings = DatasetSettings(archive_dir=kept.archive.folder)
    await collect(redis_settings, settings)
    with redis_server.client() as client:
        publish(client, redis_settings, [race(id_of(n)) for n in range(100, 110)])
        dead = JournalReader(redis_settings, group="night", consumer="dead", batch_records=3)
        await dead.start()
        assert 3 == len(await dead.read())
        await dead.aclose()
        forgotten = kept.forget(completions={id_of(n) for n in (100, 102, 105, 109)})
        assert 4 == forgotten.stream
        done = await collect(redis_settings, settings.model_copy(update={"claim_idle_s": 0.001}))
        assert (6, 0) == (done.collected, done.lost)
