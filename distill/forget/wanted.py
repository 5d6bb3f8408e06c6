"""What is to be forgotten: ids that a person names, and the conversations that are found to belong to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.dataset.split import conversation_key
from gateway.journal.record import CompletionRecord, Record


@dataclass(slots=True)
class Wanted:
    """What is to be forgotten; grows by what is found to belong to it.

    ``completions`` are their ids, ``conversations`` the keys of ``split.conversation_key``, ``keys`` ids of API keys.
    """

    completions: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    """Conversations of what was found: draws and examples of the same beginning are other copies of it."""

    def meets(self, id: str, key_id: str | None, conversation: str | None, completion_id: str | None = None) -> bool:
        """Whether a record of these facts is to go."""
        return (
            id in self.completions
            or completion_id in self.completions
            or key_id in self.keys
            or conversation in self.conversations
        )

    def note(self, id: str, conversation: str | None) -> None:
        """A completion that goes takes its feedback and the copies of its text along."""
        self.completions.add(id)
        if conversation is not None:
            self.prompts.add(conversation)

    def look_at(self, record: Record) -> None:
        """Note a completion that is to go."""
        if isinstance(record, CompletionRecord) and self.meets(record.id, record.key_id, conversation_of(record)):
            self.note(record.id, conversation_of(record))

    def has(self, record: Record) -> bool:
        """Whether a record is to go, once every completion was looked at."""
        if isinstance(record, CompletionRecord):
            return record.id in self.completions
        return self.meets(record.id, record.key_id, None, record.completion_id)


def conversation_of(record: CompletionRecord) -> str | None:
    """The key of a record's conversation; None where its content was not stored."""
    return None if record.messages is None else conversation_key(record.messages)
