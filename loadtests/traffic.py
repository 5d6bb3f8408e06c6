"""Steady traffic through the official client, as an application sends it; every answer and failure is noted."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import openai

TIMEOUT_S = 300.0
STREAMED_EVERY = 3  # one request in three is streamed


@dataclass(frozen=True, slots=True)
class Answered:
    """An answered request: the completion's id, and its duration."""

    id: str
    seconds: float
    streamed: bool


class Traffic:
    """Clients that each send one prompt after the other until the block ends; no request is sent again.

    Args:
        url: The gateway's, without /v1.
        prompts: Sent in turn; each request is a conversation of its own, with a ``user`` of its own.
        clients: Requests in flight.
        max_tokens: Longest answer.
    """

    def __init__(self, url: str, prompts: Sequence[str], *, clients: int, max_tokens: int) -> None:
        self.answered: list[Answered] = []
        self.failed: list[str] = []
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send_on, name=f"client-{index}") for index in range(clients)]
        self._client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="unused",
            max_retries=0,
            timeout=TIMEOUT_S,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _send_on(self) -> None:
        while not self._ended.is_set():
            number = next(self._numbers)
            started = time.monotonic()
            try:
                identity = self._send(number)
            except openai.OpenAIError as error:
                self.failed.append(f"request {number}: {type(error).__name__}: {error}")
                continue
            streamed = number % STREAMED_EVERY == 0
            self.answered.append(Answered(identity, time.monotonic() - started, streamed))

    def _send(self, number: int) -> str:
        """Send one request, and return the completion's id.

        Raises:
            openai.OpenAIError: No whole answer came.
        """
        prompt, user = self._prompts[number % len(self._prompts)], f"caller-{number}"
        if number % STREAMED_EVERY == 0:
            identity, text, reason = self._streamed(prompt, user)
        else:
            answer = self._client.chat.completions.create(
                model="ratchet",
                messages=[{"role": "user", "content": prompt}],
                max_tokens=self._max_tokens,
                user=user,
            )
            identity, text, reason = answer.id, answer.choices[0].message.content or "", answer.choices[0].finish_reason
        if not text or reason is None:
            raise openai.OpenAIError("the answer is empty or cut")
        return identity

    def _streamed(self, prompt: str, user: str) -> tuple[str, str, str | None]:
        identity, text, reason = "", "", None
        with self._client.chat.completions.create(
            model="ratchet",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self._max_tokens,
            user=user,
            stream=True,
        ) as chunks:
            for chunk in chunks:
                identity = chunk.id
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
        return identity, text, reason
