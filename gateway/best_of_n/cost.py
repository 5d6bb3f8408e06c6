"""The cost of a race in tokens: its prompt once, and every token drawn for it."""

from __future__ import annotations

from gateway.metering import tokens_at_most
from gateway.types import Prompt

_TEMPLATE_TOKENS = 64
"""The most that a chat template adds to a prompt, beyond a few tokens for each message."""


def race_cost(prompt: Prompt) -> int:
    """Return the tokens that a race with this prompt has cost so far; 0 if no server has begun to draw."""
    meter = prompt.meter
    if meter.prompt_tokens:
        return meter.prompt_tokens + meter.tokens
    return (most_prompt_tokens(prompt) if meter.prompt_is_uncounted else 0) + meter.tokens


def most_prompt_tokens(prompt: Prompt) -> int:
    """Return an upper bound of the prompt's tokens, for when no server counted them.

    The JSON around each message allows for the tokens that the chat template puts around it.
    """
    sampling = prompt.sampling
    return tokens_at_most([prompt.messages, sampling.tools, sampling.response_format]) + _TEMPLATE_TOKENS
