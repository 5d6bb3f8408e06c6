"""The stub's language model: answers that follow from the conversation, the adapter and the seed alone.

A draw is a slice of a long text ("tape") prepared at import, so it costs microseconds however long it is. There are
several tapes, from a dull one of few words to a rich one: candidates differ in wording, length and quality.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["eos_token", "length", "stop_sequence"]

EOS_PIECE = "<|end|>"
TAPE_PIECES = 8192

# A word is one piece or several; a piece with a leading space begins a word.
WORDS = """
 the| a| of| and| to| in| it| for| with| as| on| by| from| that| this| each| some| more| time| way| day| year| hand
| wheel| gear| spring| tooth| lever| bench| work|shop| light| house| river| bridge| stone| garden| winter| summer
| morning| market| village| mount|ain| valley| harbour| ship|yard| letter| story| answer| question| measure| number
| small| large| quick| quiet| careful|ly| slow|ly| often| always| never| perhaps| because| although| between| under
| turn|s| hold|s| click|s| learn|s| grow|s| move|s| keep|s| show|s| finds| makes| takes| gives| knows| thinks| says
| caf|é| na|ïve| über| 12| 7| 2024| copper| silver| timber| glass| paper| lantern| compass| anchor| engine| clock
| orchard| meadow| forest| desert| island| thunder| breeze| shadow| mirror| window| candle| ladder| basket| hammer
"""
WORD_LIST: list[list[str]] = []
for _part in WORDS.replace("\n", "").split("|"):
    if _part.startswith(" "):
        WORD_LIST.append([_part])
    else:
        WORD_LIST[-1].append(_part)
DEGENERATE = [[f" {a}{b}{c}"] for a in "qxzvj" for b in "aeiouy" for c in ("kk", "zh", "qu", "vv", "xi")]


class Tape:
    """A long text and the beginnings of its pieces."""

    def __init__(self, words: list[list[str]], seed: int, *, sentences: bool = True) -> None:
        rng = random.Random(seed)
        pieces: list[str] = []
        left = rng.randint(5, 12)
        while len(pieces) < TAPE_PIECES:
            pieces.extend(rng.choice(words))
            left -= 1
            if sentences and left == 0:
                pieces.append(rng.choice([".", ".", ".", "!", "?", ".\n"]))
                left = rng.randint(5, 12)
        self.pieces = pieces[:TAPE_PIECES]
        self.offsets = [0]
        for piece in self.pieces:
            self.offsets.append(self.offsets[-1] + len(piece))
        self.text = "".join(self.pieces)

    def cut(self, begin: int, count: int) -> tuple[list[str], str]:
        """Return ``count`` pieces from ``begin``, and their text; the first loses its leading space."""
        pieces = self.pieces[begin : begin + count]
        text = self.text[self.offsets[begin] : self.offsets[begin + count]]
        stripped = text.lstrip()
        pieces[0] = pieces[0][len(text) - len(stripped) :]
        return pieces, stripped


TAPES = [Tape(WORD_LIST[:size], size) for size in (8, 24, 60, len(WORD_LIST))]
DEGENERATE_TAPE = Tape(DEGENERATE, 1, sentences=False)


@dataclass(frozen=True, slots=True)
class Generated:
    """The result of one draw. ``n_tokens`` counts the end token too, which is in ``pieces`` but not in ``text``."""

    pieces: Sequence[str]
    text: str
    finish_reason: FinishReason

    @property
    def n_tokens(self) -> int:
        return len(self.pieces)

    @property
    def openai_finish_reason(self) -> str:
        """The finish reason in TGI's chat route."""
        return "stop" if self.finish_reason == "eos_token" else self.finish_reason


def draw(
    *,
    conversation: bytes,
    adapter: str | None,
    seed: int | None,
    repetition_penalty: float,
    max_new_tokens: int,
    stop: Sequence[str],
    answer_tokens: tuple[int, int],
    said: list[str] | None = None,
    tape: Tape | None = None,
) -> Generated:
    """Draw one answer.

    Args:
        conversation: What was asked; equal bytes are equal conversations.
        adapter: The loaded adapter that answers, or None for the base.
        seed: None for greedy decoding, which is deterministic whatever the seed.
        repetition_penalty: 1 is none. From 1.5 on the text degenerates, as a real model's does.
        max_new_tokens: Longest answer.
        stop: Stop sequences.
        answer_tokens: Shortest and longest natural answer.
        said: The pieces that the model says, where a grammar or a tool decides it.
        tape: What the model speaks from; unset: chance decides for each draw.
    """
    name = b"" if adapter is None else adapter.encode()
    key = b"%b\0%b\0%b" % (conversation, name, b"greedy" if seed is None else b"%d" % seed)
    if repetition_penalty != 1.0:
        key += b"\0%f" % repetition_penalty
    digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    if said is not None:
        pieces, text = said, "".join(said)
    else:
        tape = DEGENERATE_TAPE if repetition_penalty >= 1.5 else tape or TAPES[digest % len(TAPES)]
        shortest, longest = answer_tokens
        count = min(shortest + (digest >> 8) % (longest - shortest + 1), TAPE_PIECES - 1)
        begin = (digest >> 32) % (TAPE_PIECES - count)
        pieces, text = tape.cut(begin, count)
    return _stopped(pieces, text, max_new_tokens, stop)


def _stopped(pieces: list[str], text: str, max_new_tokens: int, stop: Sequence[str]) -> Generated:
    """End the text as TGI does: for each token length counts first, then the end token, then stop sequences.

    A stop sequence counts only where it ends a token: one inside a longer token passes unseen.
    """
    if stop:
        endings = tuple(stop) + tuple(sequence + "\n" for sequence in stop)
        so_far = ""
        for index, piece in enumerate(pieces[: max_new_tokens - 1]):
            so_far += piece
            if so_far.endswith(endings):
                return Generated(pieces[: index + 1], so_far, "stop_sequence")
    if max_new_tokens <= len(pieces):
        cut = pieces[:max_new_tokens]
        return Generated(cut, "".join(cut), "length")
    ended = [*pieces, EOS_PIECE]
    return Generated(ended, text, "length" if max_new_tokens == len(ended) else "eos_token")


def split(text: str, width: int = 6) -> list[str]:
    """Return ``text`` in pieces of at most ``width`` characters, spaces at the beginning of a piece."""
    pieces: list[str] = []
    for word in text.replace(" ", "\0 ").split("\0"):
        pieces.extend(word[i : i + width] for i in range(0, len(word), width))
    return pieces


def count_tokens(text: str) -> int:
    return text.count(" ") + text.count("\n") + 1 if text else 0


def logprob(piece: str, rank: int = 0) -> float:
    """Return a made-up log-probability for a piece, the same every time."""
    return -(zlib.crc32(piece.encode()) % 1000) / 1000 - rank
