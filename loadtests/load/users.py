"""Locust users that behave like applications: a closed loop. ``python -m loadtests.load`` runs them.

    locust -f loadtests/load/users.py --host http://127.0.0.1:8000

They wait for their answer before the next request, so a slow server gets fewer requests (``constant_rate.py`` is the
open loop). If ``LOAD_OUT`` names a file, every request is written to it, one CSV line each.
"""

from __future__ import annotations

import csv
import os
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent
import orjson
from gevent import socket
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed
from locust import User, between, events, task

BEST_OF = int(os.environ.get("LOAD_BEST_OF", "4"))
MAX_TOKENS = int(os.environ.get("LOAD_MAX_TOKENS", "64"))
LONG_PROMPT_WORDS = int(os.environ.get("LOAD_LONG_PROMPT_WORDS", "2000"))

PATH = "/v1/chat/completions"
COLUMNS = ("at_s", "name", "ms", "status", "id", "problem")
_HEADERS = {"Content-Type": "application/json"}
_TIMEOUT_S = 120.0
_TURNS = 4
_BURST = 8
_QUESTIONS = (
    "Describe a quiet harbour in the early morning.",
    "Give me three ideas for a rainy afternoon.",
    "Why is the sky dark at night?",
    "Write a polite reply to a late invitation.",
)
# Expected status, body: honest mistakes.
_MISTAKES: tuple[tuple[int, bytes], ...] = (
    (400, b"{"),
    (400, b"[]"),
    (400, b'{"model":"ratchet"}'),
    (400, b'{"model":"ratchet","messages":[]}'),
    (400, b'{"model":"ratchet","messages":[{"role":"user","content":"hi"}],"temperature":9}'),
    (400, b'{"model":"ratchet","messages":[{"role":"user","content":"hi"}],"best_of":-1}'),
    (400, b'{"model":"ratchet","messages":[{"role":"user","content":"hi"}],"colour":"blue"}'),
    (404, b'{"model":"gpt-0","messages":[{"role":"user","content":"hi"}]}'),
    (413, b'{"model":"ratchet","messages":[{"role":"user","content":"' + b"x" * 1_100_000 + b'"}]}'),
)


@dataclass(slots=True)
class Reply:
    """The reply to a request. ``text`` is the answer; ``problem`` says what is wrong, empty if nothing is."""

    status: int = 0
    id: str = ""
    text: str = ""
    first_piece_s: float = 0.0
    problem: str = ""


class Application(User):
    """The base of all users: one server, and an account of every request."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        address = urlsplit(self.host or "")
        self.http = HTTPClient(
            address.hostname or "",
            port=address.port,
            concurrency=1000,
            network_timeout=_TIMEOUT_S,
            connection_timeout=_TIMEOUT_S,
        )

    def chat(
        self, name: str, messages: list[dict[str, str]], *, stream: bool = False, due_s: float | None = None
    ) -> Reply:
        """Send a chat, wait for the whole answer and account for it."""
        body = {
            "model": "ratchet",
            "messages": messages,
            "best_of": BEST_OF,
            "max_tokens": MAX_TOKENS,
            "stream": stream,
        }
        started_s = time.time() if due_s is None else due_s
        reply = self.post(orjson.dumps(body))
        if reply.status == 200:
            (_read_stream if stream else _read_answer)(reply)
        elif not reply.problem:
            reply.problem = f"status {reply.status}"
        account(name, started_s, time.time(), reply)
        if stream and not reply.problem:
            account(f"{name}, first piece", started_s, reply.first_piece_s, Reply(status=200))
        return reply

    def post(self, body: bytes) -> Reply:
        """Send a body; the raw answer is the reply's text."""
        reply = Reply()
        try:
            response = self.http.request("POST", PATH, body=body, headers=_HEADERS)
            lines = [bytes(response.readline(b"\n"))]
            while lines[-1] and not lines[-1].startswith(b"data:"):  # a keep-alive comment is not part of the answer
                lines.append(bytes(response.readline(b"\n")))
            reply.first_piece_s = time.time()
            reply.text = (b"".join(lines) + bytes(response.read())).decode()
            reply.status = response.status_code
        except (OSError, HTTPConnectionClosed) as error:
            reply.problem = type(error).__name__
        return reply


class Chatter(Application):
    """A person in a chat who reads, thinks and asks again; the conversation grows for some turns."""

    weight = 8
    wait_time = between(0.5, 2.0)

    @task
    def converse(self) -> None:
        """Hold one conversation."""
        messages: list[dict[str, str]] = []
        for _ in range(_TURNS):
            messages.append(question())
            reply = self.chat("chat", messages)
            if reply.problem:
                return
            messages.append({"role": "assistant", "content": reply.text})
            self.wait()  # type: ignore[no-untyped-call]


class Reader(Application):
    """A person who reads streams to their end."""

    weight = 4
    wait_time = between(0.5, 2.0)

    @task
    def read(self) -> None:
        """Read one streamed answer."""
        self.chat("stream", [question()], stream=True)


class Burst(Application):
    """A batch job: idle for a while, then many requests at once."""

    weight = 1
    wait_time = between(3.0, 6.0)

    @task
    def burst(self) -> None:
        """Send all requests side by side."""
        gevent.joinall([gevent.spawn(self.chat, "burst", [question()]) for _ in range(_BURST)])


class LongPrompt(Application):
    """A client that sends a whole document each time."""

    weight = 1
    wait_time = between(1.0, 3.0)

    @task
    def ask(self) -> None:
        """Send one long prompt."""
        words = " ".join(
            random.choices(("harbour", "morning", "boats", "a", "quiet", "gulls", "the"), k=LONG_PROMPT_WORDS)
        )
        self.chat("long prompt", [{"role": "user", "content": f"Sum this up: {words}"}])


class Quitter(Application):
    """A client that hangs up before the answer comes."""

    weight = 1
    wait_time = between(0.5, 2.0)

    @task
    def quit(self) -> None:
        """Send a request, wait a moment, close the connection. Only the connection itself can fail."""
        body = orjson.dumps({"model": "ratchet", "messages": [question()], "best_of": BEST_OF})
        address = urlsplit(self.host or "")
        head = f"POST {PATH} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        started_s, reply = time.time(), Reply(status=499)
        try:
            with socket.create_connection((address.hostname, address.port), timeout=10.0) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                gevent.sleep(random.uniform(0.0, 0.05))
        except OSError as error:
            reply.problem = type(error).__name__
        account("hang up", started_s, time.time(), reply)


class BadCaller(Application):
    """A client with a mistake in each request, which must be refused."""

    weight = 1
    wait_time = between(0.5, 2.0)

    @task
    def err(self) -> None:
        """Make one mistake; anything but the right refusal, in OpenAI's envelope, is a failure."""
        expected, body = random.choice(_MISTAKES)
        started_s = time.time()
        reply = self.post(body)
        if not reply.problem and (reply.status != expected or '"error"' not in reply.text):
            reply.problem = f"status {reply.status}, expected {expected}"
        account("bad caller", started_s, time.time(), reply)


def account(name: str, started_s: float, ended_s: float, reply: Reply) -> None:
    """Report a request to Locust, and write it to the file."""
    ms = (ended_s - started_s) * 1e3
    events.request.fire(  # type: ignore[no-untyped-call]
        request_type="POST",
        name=name,
        response_time=ms,
        response_length=len(reply.text),
        exception=RuntimeError(reply.problem) if reply.problem else None,
        context={},
    )
    if _OUT is not None:
        _OUT.writerow((f"{started_s:.4f}", name, f"{ms:.2f}", reply.status, reply.id, reply.problem))


def question() -> dict[str, str]:
    """Return a first message that nobody has sent before."""
    return {"role": "user", "content": f"{random.choice(_QUESTIONS)} ({random.randrange(10**9)})"}


def _read_answer(reply: Reply) -> None:
    body = orjson.loads(reply.text)
    reply.id, reply.text = body["id"], body["choices"][0]["message"]["content"]
    if not reply.text:
        reply.problem = "the answer is empty"


def _read_stream(reply: Reply) -> None:
    events_ = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    if not events_ or events_[-1] != "[DONE]":
        reply.problem = "the stream was cut"
        return
    chunks = [orjson.loads(event) for event in events_[:-1]]
    if any("error" in chunk for chunk in chunks):
        reply.problem = "an error in the stream"
        return
    reply.id = chunks[0]["id"]
    reply.text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def _open_out() -> Any:
    path = os.environ.get("LOAD_OUT")
    if not path:
        return None
    # Line by line, so that a killed run leaves its measurements.
    writer = csv.writer(open(path, "w", newline="", buffering=1))  # noqa: SIM115 — lives as long as the process
    writer.writerow(COLUMNS)
    return writer


_OUT = _open_out()
