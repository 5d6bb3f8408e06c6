"""What a race costs in tokens: its prompt once, and every token that was drawn for it."""

from __future__ import annotations

from gateway.metering import tokens_at_most
from gateway.types import Prompt

_TEMPLATE_TOKENS = 64
"""What a chat template may add of its own, beyond a few tokens for each message."""


def race_cost(prompt: Prompt) -> int:
    """Return the tokens that a race with this prompt has cost by now; 0 if no server has begun to draw."""
    meter = prompt.meter
    if meter.prompt_tokens:
        return meter.prompt_tokens + meter.tokens
    return (most_prompt_tokens(prompt) if meter.prompt_is_uncounted else 0) + meter.tokens


def most_prompt_tokens(prompt: Prompt) -> int:
    """Return an upper bound of the prompt's tokens, where no server counted them.

    The JSON around each message stands for what the chat template puts around it.
    """
    sampling = prompt.sampling
    return tokens_at_most([prompt.messages, sampling.tools, sampling.response_format]) + _TEMPLATE_TOKENS
