"""Texts that the reward tests score."""

from __future__ import annotations

from gateway.types import Message

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
)
TEXTS = [
    "Paris is the capital of France.",
    "It is Paris, a city on the Seine that has been the seat of government for centuries, as most people know.",
    "No.",
    "paris paris paris " * 12,
]


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
