"""Containment of a request that breaks servers ("query of death"): after two broken servers it goes to no further one.

A suspect is known by a salted hash of the request: messages, tools, response format and sampling limits, but not seed
or temperature. A break counts if it came after the request was sent, from a server that had answered since its last
break: the draws that break together with a crashed server count once, and a server that breaks everything proves
nothing about a request. An announced end (``finish_reason: abort``, "still starting") and a refused connection never
count, so an ordinary rolling restart leaves few suspects.

Two breaks within a minute contain the request for a minute. If both were ordinary restarts, the innocent request must
not wait that long: after ten seconds one draw of it may go to a server that it broke before, and to no other. An answer
there, or anywhere, clears it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

import orjson
import structlog

from gateway.errors import RequestContained
from gateway.types import Prompt

CONTAINED_S = 60.0
TRIAL_AFTER_S = 10.0
_BREAKS = 2
_MOST_SUSPECTS = 10_000
_VARYING = frozenset({"temperature", "top_p", "seed"})  # between otherwise equal requests
_ANYWHERE: frozenset[str] = frozenset()

Event = Literal["broke", "answered", "trial"]

log = structlog.get_logger()


@dataclass(slots=True)
class _Suspect:
    last_break_s: float
    servers: set[str] = field(default_factory=set)
    breaks: int = 0
    tried: bool = False


class Containment:
    """The suspects of all pools.

    Attributes:
        salt: Of the hashes.
        publish: Passes events on to other gateways.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._suspects: dict[str, _Suspect] = {}
        self.salt = secrets.token_bytes(16)
        self.publish: Callable[[Event, str, str], None] = lambda event, request, server: None

    @property
    def idle(self) -> bool:
        """True while there is no suspect, so that no request needs a fingerprint."""
        return not self._suspects

    @property
    def contained(self) -> int:
        """The number of requests contained now."""
        self._expire()
        return sum(suspect.breaks >= _BREAKS for suspect in self._suspects.values())

    def fingerprint(self, prompt: Prompt) -> str:
        """Return the salted hash of a request; empty if the request cannot be sent at all."""
        fields = {name: value for name, value in asdict(prompt.sampling).items() if name not in _VARYING}
        try:
            content = orjson.dumps([prompt.messages, fields])
        except TypeError:  # text that is not Unicode
            return ""
        return hashlib.blake2b(content, key=self.salt, digest_size=16).hexdigest()

    def admit(self, request: str) -> frozenset[str]:
        """Return the servers to which a draw may go (empty: any), or raise ``RequestContained``."""
        suspect = self._suspects.get(request)
        if suspect is None or suspect.breaks < _BREAKS:
            return _ANYWHERE
        since_s = self._clock() - suspect.last_break_s
        if since_s >= CONTAINED_S:
            del self._suspects[request]
            return _ANYWHERE
        if since_s >= TRIAL_AFTER_S and not suspect.tried:
            self.record("trial", request, "")
            self.publish("trial", request, "")
            return frozenset(suspect.servers)
        raise _contained(CONTAINED_S - since_s)

    def broke(self, request: str, server: str) -> None:
        """Count a break; raise ``RequestContained`` if the request may go to no further server."""
        if not request:
            return
        self.record("broke", request, server)
        self.publish("broke", request, server)
        self.check(request)

    def check(self, request: str) -> None:
        """Raise ``RequestContained`` if the request has broken two servers."""
        suspect = self._suspects.get(request)
        if suspect is not None and suspect.breaks >= _BREAKS:
            raise _contained(CONTAINED_S)

    def suspects(self, request: str) -> bool:
        """Return whether the request has broken a server within the last minute."""
        suspect = self._suspects.get(request)
        return suspect is not None and self._clock() - suspect.last_break_s < CONTAINED_S

    def answered(self, request: str) -> None:
        """Clear a request that a server answered."""
        if request in self._suspects:
            self.record("answered", request, "")
            self.publish("answered", request, "")

    def record(self, event: Event, request: str, server: str) -> None:
        """Apply an event of this gateway or another one."""
        suspect = self._suspects.get(request)
        if event == "broke":
            if suspect is None or self._clock() - suspect.last_break_s >= CONTAINED_S:
                self._expire()
                suspect = self._suspects[request] = _Suspect(self._clock())
            suspect.last_break_s = self._clock()
            suspect.breaks += 1
            suspect.servers.add(server)
            log.warning("request_broke_server", server=server, breaks=suspect.breaks)
        elif event == "answered":
            self._suspects.pop(request, None)
        elif suspect is not None:
            suspect.tried = True

    def _expire(self) -> None:
        now = self._clock()
        for request, suspect in list(self._suspects.items()):
            if now - suspect.last_break_s >= CONTAINED_S or len(self._suspects) >= _MOST_SUSPECTS:
                del self._suspects[request]


def _contained(retry_after_s: float) -> RequestContained:
    return RequestContained(
        "this request broke the connections of two backend servers and goes to no further one for a minute; "
        "if it asks for a schema, a pattern or tools, simplify them",
        retry_after_s=retry_after_s,
    )
