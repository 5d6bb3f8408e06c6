"""An open loop for Locust: requests come at a constant rate, independent of earlier ones.

    LOAD_RATE=20 locust -f loadtests/load/constant_rate.py --users 1 --host http://127.0.0.1:8000

A request's time counts from when it was due, so a server (or this client) that falls behind gets longer times.
"""

from __future__ import annotations

import os
import time
from typing import Any

import gevent
from locust import task

from loadtests.load.users import Application, question

RATE = float(os.environ.get("LOAD_RATE", "10"))
STREAMED_EVERY = 4  # one request in four is streamed
_LAST_S = 60.0  # how long requests under way may take when the run ends


class ConstantRate(Application):
    """The one user that makes the whole load."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._begin_s = time.time()
        self._number = 0
        self._under_way: set[gevent.Greenlet] = set()

    @task
    def arrive(self) -> None:
        """Wait until the next request is due, and send it without waiting for its answer."""
        due_s = self._begin_s + self._number / RATE
        streamed = self._number % STREAMED_EVERY == 0
        self._number += 1
        gevent.sleep(max(0.0, due_s - time.time()))
        greenlet = gevent.spawn(self.chat, "arrival", [question()], stream=streamed, due_s=due_s)
        self._under_way.add(greenlet)
        greenlet.link(self._under_way.discard)

    def on_stop(self) -> None:
        """Let the requests in flight end."""
        gevent.joinall(list(self._under_way), timeout=_LAST_S)
