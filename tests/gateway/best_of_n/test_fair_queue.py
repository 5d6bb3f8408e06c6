"""Turns go round by key and are counted in draws; within a key, first come is first served."""

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


def served(queue: FairQueue[Entry], draws: int = 1) -> list[str | None]:
    keys = []
    while queue.head() is not None:
        keys.append(queue.pop(draws).key)
    return keys


def test_one_key_is_served_in_order() -> None:
    queue = queue_of(None, None, None)
    assert [0, 1, 2] == [queue.pop(1).number for _ in range(3)]


def test_turns_go_round_by_key_whatever_each_has_queued() -> None:
    assert ["a", "b", "c", "a", "a", "a"] == served(queue_of("a", "a", "a", "a", "b", "c"))


def test_who_comes_late_does_not_wait_for_what_others_have_queued() -> None:
    queue = queue_of(*["a"] * 100)
    for _ in range(50):
        queue.pop(1)
    queue.push(Entry("b"))
    assert ["b", "a"] == [queue.pop(1).key for _ in range(2)]


def test_who_comes_late_does_not_catch_up_either() -> None:
    queue = queue_of(*["a"] * 100)
    for _ in range(50):
        queue.pop(1)
    for _ in range(10):
        queue.push(Entry("b"))
    assert 5 == [queue.pop(1).key for _ in range(10)].count("b")


def test_turns_are_counted_in_draws() -> None:
    """A key that takes four draws at a time has one turn in five beside one that takes one."""
    queue = queue_of(*["large"] * 50, *["small"] * 50)
    draws = {"large": 0, "small": 0}
    for _ in range(50):
        head = queue.head()
        assert head is not None
        size = 4 if head.key == "large" else 1
        queue.pop(size)
        draws[str(head.key)] += size
    assert abs(draws["large"] - draws["small"]) <= 4


def test_a_key_that_returns_at_once_gains_nothing() -> None:
    """Its virtual time is kept while others wait: four draws at a time cost four turns also one by one."""
    queue = queue_of(*["small"] * 100, "large")
    draws = {"large": 0, "small": 0}
    for _ in range(60):
        head = queue.head()
        assert head is not None
        size = 4 if head.key == "large" else 1
        queue.pop(size)
        draws[str(head.key)] += size
        if head.key == "large":
            queue.push(Entry("large"))
    assert abs(draws["large"] - draws["small"]) <= 4


def test_the_newest_of_the_longest_is_the_one_to_go() -> None:
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
    for step, key, draws in steps:
        if step == "push":
            entry = Entry(key)
            inside.append(entry)
            queue.push(entry)
        elif step == "pop" and inside:
            head = queue.head()
            popped = queue.pop(draws)
            assert popped is head
            assert popped is next(entry for entry in inside if entry.key == popped.key)
            inside.remove(popped)
        elif step == "remove" and inside:
            entry = inside[draws % len(inside)]
            assert queue.remove(entry)
            assert not queue.remove(entry)
            inside.remove(entry)
        assert len(inside) == len(queue) == sum(queue.waiting(key) for key in (None, "a", "b", "c"))
        assert (queue.head() is None) == (not inside)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=2), st.integers(1, 8))
def test_no_key_starves_however_many_the_others_have(queued: dict[str, int], most: int) -> None:
    """While all of them wait, each has had within one turn as many draws as any other."""
    queue: FairQueue[Entry] = FairQueue()
    for key, number in queued.items():
        for _ in range(number):
            queue.push(Entry(key))
    had = dict.fromkeys(queued, 0)
    turn = 0
    while all(queue.waiting(key) for key in queued):
        turn += 1
        size = turn % most + 1
        had[str(queue.pop(size).key)] += size
        assert max(had.values()) - min(had.values()) <= most
