"""The prompts that ship with the embedded stack, so a machine without any data has something to ask."""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One prompt of the shipped set.

    Attributes:
        kind: What the prompt asks for, such as ``question`` or ``summary``.
        prompt: The user's message, as it would be typed into a chat.
    """

    kind: str
    prompt: str


def load() -> list[DemoPrompt]:
    """Return every shipped prompt in file order; the first twelve are the demo's selection."""
    text = resources.files("gateway.embedded").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    # Split on the newline alone: a prompt may hold other characters that splitlines() would break at.
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [DemoPrompt(kind=row["kind"], prompt=row["prompt"]) for row in rows]
