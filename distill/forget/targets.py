"""The targets of a deletion: ids that an operator names, and the conversations that belong to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.dataset.split import conversation_key
from gateway.journal.record import CompletionRecord, Record


@dataclass(slots=True)
class Targets:
    """Items to delete; completions and conversations are added as they are found.

    ``completions`` are their ids, ``conversations`` the keys of ``split.conversation_key``, ``keys`` ids of API keys.
    """

    completions: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    """Conversations of found completions: samples and examples with the same beginning are copies of them."""

    def matches(self, id: str, key_id: str | None, conversation: str | None, completion_id: str | None = None) -> bool:
        """Return whether a record with these fields is to be deleted."""
        return (
            id in self.completions
            or completion_id in self.completions
            or key_id in self.keys
            or conversation in self.conversations
        )

    def add(self, id: str, conversation: str | None) -> None:
        """Add a completion: its feedback and the copies of its text are deleted with it."""
        self.completions.add(id)
        if conversation is not None:
            self.prompts.add(conversation)

    def add_if_matched(self, record: Record) -> None:
        """Add a completion if it is to be deleted."""
        if isinstance(record, CompletionRecord) and self.matches(record.id, record.key_id, conversation_of(record)):
            self.add(record.id, conversation_of(record))

    def contains(self, record: Record) -> bool:
        """Return whether a record is to be deleted; call it after all completions were added."""
        if isinstance(record, CompletionRecord):
            return record.id in self.completions
        return self.matches(record.id, record.key_id, None, record.completion_id)


def conversation_of(record: CompletionRecord) -> str | None:
    """Return the key of a record's conversation; None if its content was not stored."""
    return None if record.messages is None else conversation_key(record.messages)
