"""The batcher: composition of batches, and one result for every entry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.errors import RewardError, RewardTimeout
from gateway.reward.batcher import Batcher, QueueFull, choose_window
from gateway.types import BatchStats

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=40)


@dataclass
class Runner:
    """Doubles each payload; holds batches while ``gate`` is closed."""

    batches: list[list[int]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0

    async def __call__(self, batch: Sequence[int]) -> list[int | RewardError]:
        self.batches.append(list(batch))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return [2 * payload for payload in batch]


def batcher(
    runner: Runner,
    *,
    budget: int = 256,
    wait_ms: float = 0,
    queue: int = 1000,
    concurrency: int = 1,
    abort: bool = False,
) -> Batcher[int, int]:
    return Batcher(
        runner,
        max_batch_tokens=budget,
        max_wait_ms=wait_ms,
        max_queue=queue,
        concurrency=concurrency,
        abort_unwanted=abort,
    )


async def until(condition: object, turns: int = 50) -> None:
    """Let the event loop turn until ``condition()`` holds."""
    assert callable(condition)
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


@given(LENGTHS, st.integers(1, 3), st.sampled_from([0, 64, 100_000]))
def test_each_waiter_gets_its_own_result_once_and_no_batch_is_over_its_budget(
    lengths: list[int], concurrency: int, launch_tokens: int
) -> None:
    async def check() -> None:
        told: list[BatchStats] = []
        runner = Runner()
        runner.gate.set()
        scoring = Batcher[int, int](
            runner,
            max_batch_tokens=128,
            max_wait_ms=0,
            max_queue=100,
            concurrency=concurrency,
            launch_tokens=launch_tokens,
            observe=told.append,
        )
        results = await asyncio.gather(*(scoring.put(i, length) for i, length in enumerate(lengths)))
        assert [2 * i for i in range(len(lengths))] == results
        assert sorted(range(len(lengths))) == sorted(i for batch in runner.batches for i in batch)
        for batch in runner.batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 128
        assert runner.most_running <= concurrency
        assert scoring.waiting == 0
        assert len(lengths) == sum(stats.entries for stats in told)
        assert sum(lengths) == sum(stats.tokens for stats in told)
        assert all(stats.padded_tokens >= stats.tokens for stats in told)

    asyncio.run(check())


@given(LENGTHS, st.data())
def test_a_cancelled_entry_never_runs_and_the_others_do(lengths: list[int], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, len(lengths) - 1)))

    async def check() -> None:
        runner = Runner()
        runner.gate.set()
        scoring = batcher(runner, budget=128)
        replies = [scoring.put(i, length) for i, length in enumerate(lengths)]
        for i in gone:
            replies[i].cancel()
        kept = [i for i in range(len(lengths)) if i not in gone]
        assert [2 * i for i in kept] == await asyncio.gather(*(replies[i] for i in kept))
        assert kept == sorted(i for batch in runner.batches for i in batch)
        await asyncio.sleep(0)
        assert scoring.waiting == 0

    asyncio.run(check())


@given(LENGTHS, st.data())
def test_the_oldest_is_always_in_the_window_which_holds_its_budget(lengths: list[int], data: st.DataObject) -> None:
    lengths.sort()
    oldest = data.draw(st.integers(0, len(lengths) - 1))
    budget = data.draw(st.integers(1, 2000))
    window = choose_window(lengths, oldest, max_batch_tokens=budget, launch_tokens=data.draw(st.integers(0, 500)))
    taken = lengths[window]
    assert window.start <= oldest < window.stop
    assert len(taken) == 1 or len(taken) * taken[-1] <= budget


@given(LENGTHS)
def test_no_entry_starves_behind_newer_ones_of_another_length(lengths: list[int]) -> None:
    """The number of an entry's batch is at most its position in the queue."""

    async def check() -> None:
        runner = Runner()
        runner.gate.set()
        scoring = batcher(runner, budget=1)
        scoring.put(-1, 1)
        await asyncio.gather(*(scoring.put(i, length) for i, length in enumerate(lengths)))
        order = [i for batch in runner.batches for i in batch]
        assert [-1, *range(len(lengths))] == order

    asyncio.run(check())


def test_entries_of_similar_length_share_a_batch_without_one_that_would_pad_them_all() -> None:
    lengths = [10] * 6 + [100]
    assert slice(0, 6) == choose_window(lengths, 0, max_batch_tokens=10_000, launch_tokens=16)
    assert slice(6, 7) == choose_window(lengths, 6, max_batch_tokens=10_000, launch_tokens=16)


@pytest.mark.parametrize(("budget", "entries"), [(29, 2), (30, 3), (31, 3)])
def test_a_batch_may_fill_its_budget_to_the_last_token(budget: int, entries: int) -> None:
    for oldest in (0, 2):
        taken = choose_window([10] * 3, oldest, max_batch_tokens=budget, launch_tokens=16)
        assert entries == taken.stop - taken.start


def test_an_expensive_start_makes_padding_acceptable() -> None:
    lengths = [10] * 6 + [100]
    assert slice(0, 7) == choose_window(lengths, 0, max_batch_tokens=10_000, launch_tokens=10_000)


async def test_entries_of_one_turn_of_the_loop_share_a_batch() -> None:
    runner = Runner()
    runner.gate.set()
    scoring = batcher(runner)
    await asyncio.gather(*(scoring.put(i, 10) for i in range(5)))
    assert [[0, 1, 2, 3, 4]] == runner.batches


async def test_entries_that_arrive_while_a_batch_runs_form_the_next() -> None:
    runner = Runner()
    scoring = batcher(runner)
    replies = [scoring.put(0, 10)]
    await until(lambda: runner.running)
    for i in (1, 2, 3):
        replies.append(scoring.put(i, 10))
        await asyncio.sleep(0)
    runner.gate.set()
    assert [0, 2, 4, 6] == await asyncio.gather(*replies)
    assert [[0], [1, 2, 3]] == runner.batches


async def test_an_entry_waits_for_others_only_until_the_batch_is_full() -> None:
    runner = Runner()
    runner.gate.set()
    scoring = batcher(runner, budget=40, wait_ms=3_600_000)
    replies = [scoring.put(0, 20)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [] == runner.batches
    replies.append(scoring.put(1, 20))
    assert [0, 2] == await asyncio.gather(*replies)


async def test_a_lone_entry_runs_when_its_wait_is_over() -> None:
    runner = Runner()
    runner.gate.set()
    scoring = batcher(runner, wait_ms=1)
    assert 2 == await scoring.put(1, 10)


async def test_an_entry_longer_than_the_budget_runs_alone() -> None:
    runner = Runner()
    runner.gate.set()
    scoring = batcher(runner, budget=50)
    await asyncio.gather(scoring.put(0, 20), scoring.put(1, 500), scoring.put(2, 20))
    assert [[0, 2], [1]] == runner.batches


async def test_several_batches_run_at_once_if_allowed() -> None:
    runner = Runner()
    scoring = batcher(runner, budget=10, concurrency=3)
    replies = [scoring.put(i, 10) for i in range(5)]
    await until(lambda: runner.running == 3)
    runner.gate.set()
    assert [0, 2, 4, 6, 8] == await asyncio.gather(*replies)
    assert 3 == runner.most_running


async def test_a_full_queue_refuses_and_a_cancelled_entry_makes_room() -> None:
    runner = Runner()
    scoring = batcher(runner, queue=2)
    running = scoring.put(0, 10)
    await until(lambda: runner.running)
    first, second = scoring.put(1, 10), scoring.put(2, 10)
    with pytest.raises(QueueFull, match="2 answers wait"):
        scoring.put(3, 10)
    first.cancel()
    await asyncio.sleep(0)
    third = scoring.put(4, 10)
    runner.gate.set()
    assert [0, 4, 8] == await asyncio.gather(*[running, second, third])


async def test_cancelling_the_waiting_task_drops_its_entry() -> None:
    runner = Runner()
    scoring = batcher(runner)
    running = scoring.put(0, 10)
    await until(lambda: runner.running)

    async def wait() -> int:
        return await scoring.put(1, 10)

    task = asyncio.create_task(wait())
    await until(lambda: scoring.waiting == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: scoring.waiting == 0)
    runner.gate.set()
    await running
    assert [[0]] == runner.batches


async def test_a_batch_that_nobody_waits_for_is_aborted_if_allowed() -> None:
    runner = Runner()
    scoring = batcher(runner, abort=True)
    replies = [scoring.put(i, 10) for i in range(2)]
    await until(lambda: runner.running)
    replies[0].cancel()
    await asyncio.sleep(0)
    assert 0 == runner.cancelled
    replies[1].cancel()
    await until(lambda: runner.cancelled)
    runner.gate.set()
    assert 14 == await scoring.put(7, 10)


async def test_a_thread_cannot_be_aborted_so_its_batch_runs_to_its_end() -> None:
    runner = Runner()
    scoring = batcher(runner)
    reply = scoring.put(0, 10)
    await until(lambda: runner.running)
    reply.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (1, 0) == (runner.running, runner.cancelled)
    runner.gate.set()
    assert 14 == await scoring.put(7, 10)


async def test_a_failing_batch_fails_its_own_entries_with_its_own_kind_of_error() -> None:
    told: list[BatchStats] = []

    async def run(batch: Sequence[int]) -> Sequence[int | RewardError]:
        if 1 in batch:
            raise RewardTimeout("too slow")
        return list(batch)

    scoring = Batcher[int, int](run, max_batch_tokens=10, max_wait_ms=0, max_queue=10, observe=told.append)
    results = await asyncio.gather(*(scoring.put(i, 10) for i in range(3)), return_exceptions=True)
    assert [0, 2] == [results[0], results[2]]
    assert isinstance(results[1], RewardTimeout)
    assert [False, True, False] == [stats.failed for stats in told]


async def test_an_entry_can_fail_alone() -> None:
    async def run(batch: Sequence[int]) -> Sequence[int | RewardError]:
        return [RewardError("no number") if payload == 1 else payload for payload in batch]

    scoring = Batcher[int, int](run, max_batch_tokens=100, max_wait_ms=0, max_queue=10)
    results = await asyncio.gather(*(scoring.put(i, 10) for i in range(3)), return_exceptions=True)
    assert [0, 2] == [results[0], results[2]]
    assert "no number" == str(results[1])


async def test_a_defect_in_the_runner_reaches_the_waiters_as_an_error_of_ours_and_the_log() -> None:
    async def run(batch: Sequence[int]) -> Sequence[int | RewardError]:
        raise ZeroDivisionError("text of a prompt")

    scoring = Batcher[int, int](run, max_batch_tokens=100, max_wait_ms=0, max_queue=10)
    with capture_logs() as logs, pytest.raises(RewardError, match="ZeroDivisionError") as caught:
        await scoring.put(0, 1)
    assert "text of a prompt" not in str(caught.value)
    assert ["reward_batch_failed"] == [line["event"] for line in logs]


async def test_a_batch_that_fails_names_all_its_requests_and_runs_in_the_context_of_none() -> None:
    contexts = []

    async def run(batch: Sequence[int]) -> Sequence[int | RewardError]:
        contexts.append(structlog.contextvars.get_contextvars())
        raise ZeroDivisionError

    async def put(request: str) -> None:
        structlog.contextvars.bind_contextvars(request=request)
        with pytest.raises(RewardError):
            await scoring.put(0, 1)

    scoring = Batcher[int, int](run, max_batch_tokens=100, max_wait_ms=0, max_queue=10)
    with capture_logs() as logs:
        await asyncio.gather(*(put(request) for request in ("r-2", "r-1", "r-2")))
    assert [["r-1", "r-2"]] == [line["requests"] for line in logs]
    assert [{}] == contexts


async def test_too_few_results_fail_the_batch() -> None:
    async def run(batch: Sequence[int]) -> Sequence[int | RewardError]:
        return list(batch)[:-1]

    scoring = Batcher[int, int](run, max_batch_tokens=100, max_wait_ms=0, max_queue=10)
    results = await asyncio.gather(*(scoring.put(i, 10) for i in range(3)), return_exceptions=True)
    assert ["the reward model gave 2 rewards for 3 answers"] * 3 == [str(result) for result in results]


async def test_closing_fails_waiting_entries_finishes_the_running_batch_and_refuses_more() -> None:
    runner = Runner()
    scoring = batcher(runner)
    running = scoring.put(0, 10)
    await until(lambda: runner.running)
    waiting = scoring.put(1, 10)
    closing = asyncio.create_task(scoring.aclose())
    await until(lambda: waiting.done())
    assert "scoring has stopped" == str(waiting.exception())
    runner.gate.set()
    await closing
    assert 0 == await running
    assert scoring.closed
    with pytest.raises(RewardError, match="stopped"):
        scoring.put(2, 10)


async def test_closing_aborts_running_batches_if_allowed_and_cancels_the_timer() -> None:
    runner = Runner()
    scoring = batcher(runner, abort=True, concurrency=3, wait_ms=3_600_000, budget=20)
    replies = [scoring.put(i, 20) for i in range(2)]
    await until(lambda: runner.running)
    replies.append(scoring.put(2, 10))
    await asyncio.sleep(0)
    await scoring.aclose()
    results = await asyncio.gather(*replies, return_exceptions=True)
    assert ["scoring has stopped"] * 3 == [str(result) for result in results]
