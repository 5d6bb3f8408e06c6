"""Refuse a prompt that is longer than the server's limit before a race draws; the server counts its tokens.

A prompt is counted once for a race, and only if it may be too long by its bytes. Where the server's limit is not known,
or the server does not count, the draws are made and the server refuses them itself.
"""

from __future__ import annotations

import asyncio
import string

import orjson

from gateway.backend.flavours import Refusal, context_exceeded
from gateway.backend.kind import Kind
from gateway.backend.replicas import Replica
from gateway.backend.route import Route
from gateway.errors import ContextLengthExceeded, GatewayError
from gateway.types import Prompt

_COUNT_TIMEOUT_S = 2.0
_LETTERS = string.ascii_letters.encode()
_LEAST_LIMIT_TOKENS = 2_048  # a server with an unknown limit is asked for it if a prompt may be longer than this


class PromptLength:
    """Compares prompts with the servers' limits."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._checks: set[asyncio.Task[Refusal | None]] = set()

    async def check(self, route: Route, replica: Replica, prompt: Prompt) -> None:
        """Count the race's prompt once if it may be too long; the race's other draws wait for the count.

        Raises:
            ContextLengthExceeded: It is longer than the replica's limit.
        """
        if not route.length_checked:
            route.length_checked = True
            limit = _LEAST_LIMIT_TOKENS if replica.identity is None else replica.identity.max_prompt_tokens
            if limit is None or not may_exceed(prompt, limit):
                return
            task = route.length_check = asyncio.create_task(self._check(replica, prompt), name="prompt-length")
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)
        refusal = None if route.length_check is None else await asyncio.shield(route.length_check)
        if refusal is not None:
            raise ContextLengthExceeded(str(refusal.reason), param=refusal.param)

    def close(self) -> None:
        for task in self._checks:
            task.cancel()

    async def _check(self, replica: Replica, prompt: Prompt) -> Refusal | None:
        try:
            async with asyncio.timeout(_COUNT_TIMEOUT_S):
                identity = replica.identity or await self._kind.identify_now_and_then(replica)
                limit = None if identity is None else identity.max_prompt_tokens
                if limit is None or not may_exceed(prompt, limit):
                    return None
                tokens = await self._kind.flavour.count(prompt, replica.server.post)
        except (GatewayError, TimeoutError):
            return None  # the draws meet the same error
        return None if tokens is None or tokens <= limit else context_exceeded(limit, tokens)


def may_exceed(prompt: Prompt, limit_tokens: int) -> bool:
    """Return whether a prompt may have more tokens than this, by its length in bytes.

    No text has more tokens than bytes. Two ASCII letters are counted as one token, though most tokens have more;
    digits and other scripts may have a token for each byte.
    """
    try:
        sent = orjson.dumps([prompt.messages, prompt.sampling.tools])
    except TypeError:  # text that is not Unicode: the draw will be refused
        return False
    if len(sent) <= limit_tokens:
        return False
    others = len(sent.translate(None, _LETTERS))
    return others + (len(sent) - others + 1) // 2 > limit_tokens
