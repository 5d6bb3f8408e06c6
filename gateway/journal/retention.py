"""Trim the journal's stream in small steps, and count the entries that left it unread.

Only this module trims the stream. An entry may be removed once every consumer group has acknowledged it. One XTRIM of a
hundred thousand entries would block Redis for a second, so each step takes a few milliseconds.

Redis counts the entries ever added to a stream (``entries-added``) and, for each group, those added up to the last one
delivered (``entries-read``). Entries after that place that left the stream, and were not delivered since, are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis as sync_redis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from gateway.journal.stream import EntryOrder, entry_order

_STEP_ENTRIES = 500
_NEARLY = 0.9
_WORTH_FREEING_ENTRIES = 1_000


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Another consumer group that still needs entries which this group has acknowledged."""

    group: str
    since_ms: int  # when its oldest needed entry was added, by Redis's clock, since the epoch


@dataclass(frozen=True, slots=True)
class Place:
    """A group's place in the stream."""

    gone: int | None  # entries that have left the stream; None if Redis does not count them (before version 7)
    read: int | None  # entries added up to the last delivered one; None if Redis does not know
    behind: bool  # entries up to the last delivered one are still in the stream
    delivered: str  # id of the last delivered entry

    def lost_since(self, start: Place, n_delivered: int) -> int:
        """Return how many entries left the stream undelivered since ``start``; ``n_delivered`` were delivered."""
        # A trim removes the oldest entries first: while entries before this place remain, none after it has left.
        if self.behind or self.gone is None or start.read is None:
            return 0
        return max(0, self.gone - start.read - n_delivered)

    def read_now(self, start: Place, n_delivered: int) -> int | None:
        """Return how many entries were added up to the last delivered one, lost ones included."""
        if self.behind:
            return None if start.read is None else start.read + n_delivered
        return self.gone


async def place_of(redis: Redis, stream: str, group: str) -> Place:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xinfo_stream(stream)
        pipe.xinfo_groups(stream)
        found, groups = await pipe.execute()
    ours = next(each for each in groups if each["name"] == group.encode())
    added, first = found.get("entries-added"), found.get("first-entry")
    return Place(
        gone=None if added is None else added - found["length"],
        read=0 if ours["last-delivered-id"] == b"0-0" else ours.get("entries-read"),
        behind=first is not None and entry_order(first[0]) <= entry_order(ours["last-delivered-id"]),
        delivered=ours["last-delivered-id"].decode(),
    )


async def trim_acknowledged(redis: Redis, stream: str) -> int:
    """Remove the oldest entries that every group has acknowledged; return how many were removed."""
    milliseconds, sequence = min((await _needed(redis, stream)).values(), default=(0, 0))
    return await trim_before(redis, stream, f"{milliseconds}-{sequence}")


async def trim_before(redis: Redis, stream: str, entry_id: str) -> int:
    """Remove the entries before an id, a bounded number in each call; return how many were removed."""
    removed = 0
    # A step removes whole nodes of the stream (a hundred entries at most); the last call removes part of a node.
    while step := await redis.xtrim(stream, minid=entry_id, approximate=True, limit=_STEP_ENTRIES):
        removed += int(step)
    return removed + int(await redis.xtrim(stream, minid=entry_id, approximate=False))


async def is_full(redis: Redis, stream: str, max_records: int) -> bool:
    """Return True if the stream is near its limit, or Redis near its memory limit with entries to free."""
    length = await redis.xlen(stream)
    if length >= _NEARLY * max_records:
        return True
    if length < _WORTH_FREEING_ENTRIES:
        return False
    try:
        memory = await redis.info("memory")
    except ResponseError:
        return False  # this user may not call INFO
    limit, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
    return limit > 0 and used >= _NEARLY * limit


async def held_back(redis: Redis, stream: str, group: str) -> list[HeldBack]:
    """Return the other groups that need older entries than this one, oldest first."""
    needed = await _needed(redis, stream)
    first = (await redis.xinfo_stream(stream)).get("first-entry")
    if first is None:
        return []
    since = {name: max(place, entry_order(first[0])) for name, place in needed.items() if name != group}
    older = {name: place for name, place in since.items() if place < needed[group]}
    return [HeldBack(name, place[0]) for name, place in sorted(older.items(), key=lambda item: item[1])]


def delete_entries(redis: sync_redis.Redis, stream: str, group: str, entry_ids: Sequence[str]) -> None:
    """Delete entries, in any order, so that the group does not count them as lost; the group may be missing."""
    for start in range(0, len(entry_ids), _STEP_ENTRIES):
        chunk = entry_ids[start : start + _STEP_ENTRIES]
        groups: Any = redis.xinfo_groups(stream)
        ours = next((each for each in groups if each["name"] == group.encode()), None)
        gone: Any = redis.xdel(stream, *chunk)
        if ours is None:
            continue
        redis.xack(stream, group, *chunk)
        unread = sum(entry_order(entry_id) > entry_order(ours["last-delivered-id"]) for entry_id in chunk)
        read = ours.get("entries-read")
        if unread and gone and read is not None:
            redis.xgroup_setid(stream, group, ours["last-delivered-id"], entries_read=read + min(unread, gone))


async def _needed(redis: Redis, stream: str) -> dict[str, EntryOrder]:
    """Return each group's oldest needed entry: unacknowledged, or not delivered yet."""
    needed = {}
    for group in await redis.xinfo_groups(stream):
        pending = await redis.xpending(stream, group["name"])
        name = group["name"].decode("utf-8", "replace")
        if pending["pending"]:
            needed[name] = entry_order(pending["min"])
        else:
            milliseconds, sequence = entry_order(group["last-delivered-id"])
            needed[name] = (milliseconds, sequence + 1)
    return needed
