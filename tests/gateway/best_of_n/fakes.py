"""A backend and a scorer under a test's control, for timings that real ones have only by chance."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from gateway.errors import GatewayError
from gateway.types import Answer, Delta, Message, Prompt, Readiness, Score

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def answer(text: str, tokens: int = 3) -> Answer:
    return Answer(text=text, finish_reason="stop", prompt_tokens=5, completion_tokens=tokens)


@dataclass
class FakeBackend:
    """Call ``i`` gives ``script[i]``: an answer, an error, or nothing, ever (None)."""

    script: Sequence[Answer | GatewayError | None]
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    deltas: Sequence[Delta | GatewayError] = ()
    seeds: list[int] = field(default_factory=list)
    asked: list[tuple[Prompt, int]] = field(default_factory=list)
    """The prompt and replica of each call."""
    cancelled: int = 0
    running: int = 0
    most_running: int = 0
    closed_streams: int = 0

    def choose_replica(self) -> int:
        return 3

    async def complete(self, prompt: Prompt, *, seed: int, replica: int) -> Answer:
        index = len(self.seeds)
        self.seeds.append(seed)
        self.asked.append((prompt, replica))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(0)
            if index in self.gates:
                await self.gates[index].wait()
            result = self.script[index]
            if result is None:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(result, GatewayError):
            raise result
        assert result is not None
        return result

    async def stream(self, prompt: Prompt, *, seed: int, replica: int) -> AsyncGenerator[Delta]:
        self.seeds.append(seed)
        self.asked.append((prompt, replica))
        try:
            for delta in self.deltas:
                await asyncio.sleep(0)
                if isinstance(delta, GatewayError):
                    raise delta
                yield delta
            if not self.deltas:
                await asyncio.Event().wait()
        finally:
            self.closed_streams += 1


@dataclass
class FakeScorer:
    """Scores by ``rule``: a reward, an error to raise, or nothing, ever (None)."""

    rule: Callable[[str], float | GatewayError | None]
    asked: list[str] = field(default_factory=list)
    conversations: list[Sequence[Message]] = field(default_factory=list)
    cancelled: int = 0
    name: str = "fake-judge"
    available: bool = True
    n_away: int = 0

    def start(self) -> None:
        return None

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        self.asked.append(answer)
        self.conversations.append(messages)
        result = self.rule(answer)
        try:
            await asyncio.sleep(0)
            if result is None:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(result, GatewayError):
            raise result
        assert result is not None
        return Score(result)

    async def readiness(self) -> Readiness:
        return Readiness(True)

    async def aclose(self) -> None:
        return None
