"""A caller's word is searched in every file that two nights leave, before and after ``forget``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from typer.testing import CliRunner

from distill.__main__ import app
from distill.dataset.archive import Archive
from distill.dataset.split import conversation_key, is_held_out
from distill.report.facts import NightFacts
from distill.run_dir import runs
from gateway.journal.claim import Claim
from gateway.journal.erase import spool_records
from gateway.journal.record import CompletionRecord, Record, encode
from gateway.journal.spool import SegmentWriter, SpoolReader, pack
from gateway.settings import RedisSettings, variables
from tests.distill.dataset.records import candidate, publish, race, rated, user
from tests.distill.nightly.attempts import attempt
from tests.distill.nightly.fleet import environment
from tests.redis_server import RedisServer

ALICE, BOB = "a" * 16, "b" * 16
PLANTED = b"xyzzy"
PLACES = {
    "the append-only file": r"appendonlydir/.*",
    "the spool": r"spool/worker-\w+/\d+\.seg",
    "the archive": r"archive/day=[\d-]+/part-\d+\.parquet",
    "records that no version can read": r"archive/_quarantine/\w+\.json",
    "draws kept over nights": r"draws/[\w-]+\.jsonl",
    "the checkpoints' draws": r"runs/[^/]+/draws/rft-[\w-]+\.jsonl",
    "examples": r"runs/[^/]+/examples\.jsonl",
    "held-out prompts": r"runs/[^/]+/held_out\.jsonl",
    "earlier nights' winners": r"runs/[^/]+/replay\.jsonl",
    "the report": r"runs/[^/]+/report\.html",
    "the report's facts": r"runs/[^/]+/report\.json",
    "prompts that the backend refused": r"runs/[^/]+/steps/draw\.json",
}
"""Every kind of place that keeps callers' texts. A new one belongs here and into ``forget``."""


def planted_races(start: int, count: int) -> list[Record]:
    """Return races of two callers; every text of Alice's half holds the planted word."""
    found: list[Record] = []
    for number in range(start, start + count):
        word, key_id = ("xyzzy", ALICE) if number % 2 else ("plain", BOB)
        draws = [replace(candidate(k, float(k)), text=f"{word} answer {k} to {number}.") for k in range(3)]
        found.append(
            race(
                id_of(number),
                prompt=f"{word}{number} w{number} e{number}?",
                candidates=draws,
                key_id=key_id,
                user=f"{word} user",
                metadata={"of": f"{word} metadata"},
            )
        )
        found.append(replace(rated(id_of(number), 1.0, f"feedback-{number}"), comment=f"{word} comment", key_id=BOB))
    return found


def prompt(record: Record) -> str:
    assert isinstance(record, CompletionRecord)
    assert record.messages is not None
    return str(record.messages[0]["content"])


def id_of(number: int) -> str:
    return f"chatcmpl-{number:032x}"


def too_long() -> CompletionRecord:
    """Return a race on a held-out prompt that the backend refuses."""
    prompts = (f"xyzzy long {number} " + "word " * 9000 for number in range(100))
    prompt = next(text for text in prompts if is_held_out(conversation_key(user(text)), 0.4))
    return race(id_of(10_000), prompt=prompt, key_id=ALICE)


def places(*folders: Path) -> set[str]:
    """Return the kinds of places that hold the planted word, or the name of a file of no known kind."""
    found = set()
    for folder in folders:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            content = str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
            if PLANTED in content:
                name = str(path.relative_to(folder))
                found.add(next((place for place, form in PLACES.items() if re.fullmatch(form, name)), name))
    return found


def spool(folder: Path) -> Claim:
    """Two workers' folders: one died with records that Redis lacks; one runs, and Redis has its records."""
    for name in ("dead", "running"):
        claim = Claim.new(folder)
        writer = SegmentWriter(claim.folder, sync=None)
        for number, (word, key_id) in enumerate((("xyzzy", ALICE), ("plain", BOB)), start=20_000):
            record = race(id_of(number), prompt=f"{word} {name}", key_id=key_id)
            writer.write(pack(record.id.encode(), encode(record)))
        writer.close()
        if name == "dead":
            claim.release()
    tail = SpoolReader(claim.folder)
    tail.advance(tail.read(max_records=9, max_bytes=1 << 20, end=None))
    tail.acknowledge()
    return claim


def test_after_forget_no_file_holds_the_planted_word(
    tmp_path: Path,
    stopped_redis_server: RedisServer,
    redis_settings: RedisSettings,
    stub_urls: tuple[str, str],
    model: Path,
) -> None:
    tgi, rewards = stub_urls
    stopped_redis_server.start(appendonly="yes")
    folder = tmp_path / "data"
    folder.mkdir()
    unreadable = b'{"kind": "new", "text": "xyzzy", "key_id": "%s"}' % ALICE.encode()
    night = environment(folder, tgi_url=tgi, reward_url=rewards, redis_url=stopped_redis_server.url, model=model)
    with stopped_redis_server.client() as client:
        server: Any = client.config_get("dir")
        aof = Path(server["dir"]) / "appendonlydir"
        for races in ([*planted_races(0, 60), too_long(), unreadable], planted_races(100, 30)):
            publish(client, redis_settings, races)
            assert 0 == attempt(night), (folder / "attempts.log").read_text()
        publish(client, redis_settings, planted_races(200, 2))
        claim = spool(folder / "spool")
        assert set(PLACES) == places(folder, aof.parent)
        environ = {**dict.fromkeys(variables()), **night, "COLUMNS": "200"}
        forgotten = CliRunner().invoke(app, ["forget", "--key", ALICE], env=environ)
        assert 0 == forgotten.exit_code, forgotten.output
        assert set() == places(folder, aof.parent)
        assert "not reached" not in forgotten.output
    claim.release()
    assert "plain200 w200 e200?" in set(map(prompt, Archive(folder / "archive").completions()))
    assert {"plain dead", "plain running"} == set(map(prompt, spool_records(folder / "spool")))
    for run in runs(folder / "runs"):
        assert NightFacts.read(run.path).samples
        assert "plain" in (run.path / "report.html").read_text()
