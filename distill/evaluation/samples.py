"""Samples: the answers drawn at night, the files that hold them, and the plan that says which to draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DataError
from distill.evaluation.prompts import Prompt
from distill.run_dir import whole_lines
from gateway.types import Message

_SEED_BITS = 32  # what every backend takes
_KEY_BYTES = 16


def answer_key(messages: Sequence[Message], text: str) -> str:
    """Return the key that equal answers to equal conversations share: each is scored once."""
    content = json.dumps([messages, text], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=_KEY_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a prompt: a line of a file of samples."""

    prompt: Prompt
    temperature: float
    index: int
    seed: int
    text: str
    finish_reason: str
    completion_tokens: int

    @property
    def place(self) -> tuple[str, float, int]:
        """Prompt key, temperature and index: no two samples of a file share them."""
        return self.prompt.key, self.temperature, self.index

    @property
    def answer_key(self) -> str:
        return answer_key(self.prompt.messages, self.text)

    def to_line(self) -> bytes:
        """Render the line. A lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
        fields = {
            "prompt": self.prompt.text,
            "kind": self.prompt.kind,
            "temperature": self.temperature,
            "index": self.index,
            "seed": self.seed,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "completion_tokens": self.completion_tokens,
        }
        if not self.prompt.is_single_message:
            fields["turns"] = self.prompt.messages
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Sample:
        """Parse a line.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is not a sample.
        """
        fields = json.loads(line)
        text, kind, turns = fields.pop("prompt"), fields.pop("kind"), fields.pop("turns", None)
        return cls(Prompt.of_text(text, kind) if turns is None else Prompt(turns, kind), **fields)


SampleSet = list[list[Sample]]
"""All samples of one list of prompts by one policy at one temperature: P prompts, M samples of each by index."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """A plan to sample ``count`` answers to each prompt at each temperature, of ``max_tokens`` at most.

    ``adapter`` answers; None is the base.
    """

    prompts: Sequence[Prompt]
    temperatures: Sequence[float]
    count: int
    max_tokens: int
    seed: int = 0
    adapter: str | None = None

    @property
    def size(self) -> int:
        return len(self.prompts) * len(self.temperatures) * self.count

    def places(self) -> Iterator[tuple[Prompt, float, int]]:
        """Yield every (prompt, temperature, index), prompt by prompt; temperatures take turns within one."""
        for prompt in self.prompts:
            for index in range(self.count):
                for temperature in self.temperatures:
                    yield prompt, temperature, index

    def seed_of(self, prompt: Prompt, temperature: float, index: int) -> int:
        """Derive a seed from the sample's place alone, so that a resumed run samples what an unbroken one would."""
        place = json.dumps([self.seed, prompt.key, temperature, index]).encode()
        # One bit less than there are: llama.cpp takes the highest seed to mean "random".
        return int.from_bytes(hashlib.blake2b(place, digest_size=_SEED_BITS // 8).digest()) >> 1


def read_samples(path: Path) -> list[Sample]:
    """Read every whole line of a file; a last line that a killed run left unfinished is skipped.

    Raises:
        DataError: The file cannot be read, or a line is not a sample.
    """
    samples: list[Sample] = []
    try:
        for line in whole_lines(path):
            samples.append(Sample.from_line(line))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        number = len(samples) + 1
        raise DataError(f"{path}, line {number} is not a sample: remove the line, and it is drawn again") from error
    return samples
