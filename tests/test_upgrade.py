"""Data of earlier versions is taken over whole: stream, spool, archive, policy and runs.

The data is made here by hand, in the form in which the first version (November 2026) wrote it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.dataset.archive import Archive
from distill.dataset.collect import Collected, collect
from distill.run_dir import new_run, runs
from distill.settings import DatasetSettings
from gateway.journal.spool import MAGIC, pack
from gateway.journal.writer import Journal
from gateway.policy import PolicyStore
from gateway.settings import JournalSettings, PolicySettings, RedisSettings
from tests.redis_server import RedisServer

NOON_MS = 1_795_867_200_000  # 2026-11-28 12:00 UTC
POLICY = {"version": 3, "adapter": "rft-old", "n": 2, "n_max": 8, "created": "2026-11-27T03:30:00Z", "reason": "night"}
_COLUMNS = [
    ("id", pa.string()),
    ("kind", pa.string()),
    ("time", pa.timestamp("ms", tz="UTC")),
    ("key_id", pa.string()),
    ("record", pa.string()),
]


def record(name: str) -> bytes:
    """Return a completion of schema version 1, without fields of later versions."""
    draws = [
        {"index": k, "seed": k, "text": f"answer {k}", "finish_reason": "stop", "tokens": 2, "reward": float(k)}
        for k in range(2)
    ]
    document: dict[str, Any] = {
        "id": name,
        "time_ms": NOON_MS,
        "key_id": "4f2a",
        "model": "ratchet",
        "store": True,
        "n_messages": 1,
        "messages": [{"role": "user", "content": f"question of {name}"}],
        "sampling": {"temperature": 1.0},
        "user": None,
        "metadata": None,
        "policy_version": 3,
        "adapter": "rft-old",
        "reward_model": "judge",
        "n_asked": 2,
        "n_ordinary": 2,
        "n_run": 2,
        "n_returned": 1,
        "seed": 1,
        "candidates": draws,
        "winners": [1],
        "selection": "scored",
        "exploration": False,
        "exploration_probability": 0.0,
        "deadline_hit": False,
        "scoring_error": None,
        "usage": {"prompt_tokens": 3, "returned_tokens": 2, "generated_tokens": 4},
        "timings": {},
        "kind": "completion",
        "schema_version": 1,
    }
    return json.dumps(document).encode()


def old_archive(folder: Path, names: list[str]) -> None:
    rows = [
        {"id": name, "kind": "completion", "time": NOON_MS, "key_id": "4f2a", "record": record(name).decode()}
        for name in names
    ]
    schema = pa.schema(_COLUMNS, metadata={b"ratchet.archive_schema": b"1"})
    day = folder / "day=2026-11-28"
    day.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), day / "part-00000.parquet")


def old_spool(folder: Path, names: list[str]) -> None:
    worker = folder / "worker-00"
    worker.mkdir(parents=True)
    frames = b"".join(pack(name.encode(), record(name)) for name in names)
    (worker / "00000001.seg").write_bytes(MAGIC + frames)


@pytest.mark.parametrize("read_before", [False, True], ids=["no night yet", "a night before"])
async def test_records_of_the_first_version_are_all_archived_once(
    read_before: bool, tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """Old stream, old group, old spool, an old part of the same day; nothing counts as lost."""
    archive = tmp_path / "archive"
    old_archive(archive, ["archived"])
    old_spool(tmp_path / "spool", ["spooled-1", "spooled-2"])
    with redis_server.client() as client:

        def add(*names: str) -> None:
            for name in names:
                client.xadd("ratchet:journal", {"id": name, "data": record(name)}, maxlen=1_000_000, approximate=True)

        if read_before:  # as the first version did: an old group, everything it acknowledged trimmed
            add("archived")
            client.xgroup_create("ratchet:journal", "night", id="0")
            found: Any = client.xreadgroup("night", "archive-old", {"ratchet:journal": ">"})
            client.xack("ratchet:journal", "night", found[0][1][0][0])
            client.xtrim("ratchet:journal", maxlen=0, approximate=False)
        add("archived", "streamed-1", "streamed-2")
        journal = Journal(JournalSettings(spool_dir=tmp_path / "spool"), redis_settings)
        await journal.start()
        assert await journal.drained(30)
        await journal.aclose()
        dataset = DatasetSettings(archive_dir=archive)
        done = await collect(redis_settings, dataset)
        assert (4, 1, 0) == (done.collected, done.duplicates, done.lost)
        assert 0 == client.xlen("ratchet:journal")
        assert Collected(warnings=done.warnings) == await collect(redis_settings, dataset)
    expected = ["archived", "spooled-1", "spooled-2", "streamed-1", "streamed-2"]
    assert expected == sorted(found.id for found in Archive(archive).completions())


async def test_the_policy_of_the_first_version_stays_in_force(
    tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """The next version follows its version."""
    with redis_server.client() as client:
        client.set("ratchet:policy", json.dumps(POLICY))
        client.lpush("ratchet:policy:history", json.dumps(POLICY))
    store = PolicyStore(PolicySettings(), redis_settings, folder=tmp_path, n_limit=16)
    await store.start()
    try:
        assert (3, "rft-old", 2) == (store.current.version, store.current.adapter, store.current.n)
        await store.publish(store.current.successor(reason="new", n=3))
        assert [4, 3] == [policy.version for policy in await store.history()]
    finally:
        await store.aclose()


def test_runs_of_the_first_version_come_before_new_ones(tmp_path: Path) -> None:
    """They have no number in their manifest."""
    for name in ("2026-11-27T03-30-00", "2026-11-28T03-30-00"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    new = new_run(tmp_path, {"began": datetime.now(UTC).isoformat()})
    assert ["2026-11-27T03-30-00", "2026-11-28T03-30-00", new.id] == [run.id for run in runs(tmp_path)]
