"""Keys take turns, counted in permits; within a key, the first to come is the first to be served."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.fair_queue import FairQueue


@dataclass(eq=False)
class Entry:
    key: str | None
    number: int = 0


def queue_of(*keys: str | None) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue()
    for number, key in enumerate(keys):
        queue.push(Entry(key, number))
    return queue


def served(queue: FairQueue[Entry], permits: int = 1) -> list[str | None]:
    keys = []
    while queue.head() is not None:
        keys.append(queue.pop(permits).key)
    return keys


def test_one_key_is_served_in_order() -> None:
    queue = queue_of(None, None, None)
    assert [0, 1, 2] == [queue.pop(1).number for _ in range(3)]


def test_keys_take_turns_however_much_each_has_queued() -> None:
    assert ["a", "b", "c", "a", "a", "a"] == served(queue_of("a", "a", "a", "a", "b", "c"))


def test_a_key_that_comes_late_does_not_wait_for_all_that_others_have_queued() -> None:
    queue = queue_of(*["a"] * 100)
    for _ in range(50):
        queue.pop(1)
    queue.push(Entry("b"))
    assert ["b", "a"] == [queue.pop(1).key for _ in range(2)]


def test_a_key_that_comes_late_does_not_catch_up() -> None:
    queue = queue_of(*["a"] * 100)
    for _ in range(50):
        queue.pop(1)
    for _ in range(10):
        queue.push(Entry("b"))
    assert 5 == [queue.pop(1).key for _ in range(10)].count("b")


def test_turns_are_counted_in_permits() -> None:
    """A key that takes four permits at a time has one turn in five next to a key that takes one."""
    queue = queue_of(*["large"] * 50, *["small"] * 50)
    permits = {"large": 0, "small": 0}
    for _ in range(50):
        head = queue.head()
        assert head is not None
        size = 4 if head.key == "large" else 1
        queue.pop(size)
        permits[str(head.key)] += size
    assert abs(permits["large"] - permits["small"]) <= 4


def test_a_key_that_returns_at_once_gains_nothing() -> None:
    """Its virtual time is kept while others wait: four permits cost four turns, also one request at a time."""
    queue = queue_of(*["small"] * 100, "large")
    permits = {"large": 0, "small": 0}
    for _ in range(60):
        head = queue.head()
        assert head is not None
        size = 4 if head.key == "large" else 1
        queue.pop(size)
        permits[str(head.key)] += size
        if head.key == "large":
            queue.push(Entry("large"))
    assert abs(permits["large"] - permits["small"]) <= 4


def test_the_newest_entry_of_the_longest_key_is_found() -> None:
    queue = queue_of("a", "b", "a", "a", "b")
    newest = queue.newest_of_longest()
    assert newest is not None
    assert ("a", 3) == (newest.key, newest.number)
    assert queue_of().newest_of_longest() is None


KEYS = st.sampled_from([None, "a", "b", "c"])
STEPS = st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), KEYS, st.integers(1, 8)), max_size=80)


@given(STEPS)
def test_nothing_is_lost_and_waiting_keys_stay_within_one_turn_of_each_other(
    steps: list[tuple[str, str | None, int]],
) -> None:
    queue: FairQueue[Entry] = FairQueue()
    inside: list[Entry] = []
    for step, key, permits in steps:
        if step == "push":
            entry = Entry(key)
            inside.append(entry)
            queue.push(entry)
        elif step == "pop" and inside:
            head = queue.head()
            popped = queue.pop(permits)
            assert popped is head
            assert popped is next(entry for entry in inside if entry.key == popped.key)
            inside.remove(popped)
        elif step == "remove" and inside:
            entry = inside[permits % len(inside)]
            assert queue.remove(entry)
            assert not queue.remove(entry)
            inside.remove(entry)
        assert len(inside) == len(queue) == sum(queue.waiting(key) for key in (None, "a", "b", "c"))
        assert (queue.head() is None) == (not inside)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=2), st.integers(1, 8))
def test_no_key_starves_however_much_the_others_have_queued(queued: dict[str, int], most: int) -> None:
    """While all keys wait, the permits that each was given differ by at most one turn."""
    queue: FairQueue[Entry] = FairQueue()
    for key, number in queued.items():
        for _ in range(number):
            queue.push(Entry(key))
    given = dict.fromkeys(queued, 0)
    turn = 0
    while all(queue.waiting(key) for key in queued):
        turn += 1
        size = turn % most + 1
        given[str(queue.pop(size).key)] += size
        assert max(given.values()) - min(given.values()) <= most
