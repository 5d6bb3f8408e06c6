"""The prompts that ship with the embedded stack, for a machine without data of its own."""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One shipped prompt.

    Attributes:
        kind: Kind of the task, such as ``question`` or ``summary``.
        prompt: The user's message.
    """

    kind: str
    prompt: str


def load() -> list[DemoPrompt]:
    """Return every shipped prompt in the order of the file; the demo asks the first twelve."""
    text = resources.files("gateway.embedded").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    # Split at newlines only: splitlines() would also split at other characters, which a prompt may contain.
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [DemoPrompt(kind=row["kind"], prompt=row["prompt"]) for row in rows]
