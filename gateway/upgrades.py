"""HTTP/1.1 connections that ignore every upgrade offer, as RFC 9110 7.8 allows.

``Upgrade: h2c`` comes with every request of Java's HttpClient and of ``curl --http2``. The request is served as if the
offer were not there. uvicorn's parser cannot do so itself: it takes what follows the headers for another protocol, and
uvicorn then answers without the body, and reads a body that comes in its own segment as a second request. So the head
of such a request is parsed again without the offer, by a new parser, and the body goes to that one.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER_HEADERS = frozenset({b"upgrade", b"http2-settings"})


class _NoTunnelsError(Exception):
    """Ends the parsing; httptools turns it into an error of its own."""


class NoUpgradesProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        arguments: uvicorn's.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._head_without_offer: bytes | None = None

    def data_received(self, data: bytes) -> None:
        """Parse, as uvicorn does, and start each request that came with an upgrade offer anew without it."""
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        """Begin the request; set one with an upgrade offer aside."""
        if self.parser.should_upgrade():
            self._head_without_offer = self._render_head()
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's last byte; the parser also says so of a head with an upgrade offer, whose body is to come."""
        if self._head_without_offer is None:
            super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                rest = memoryview(rest)[offer.args[0] :]
            head, self._head_without_offer = self._head_without_offer or b"", None
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets them
            self.parser.feed_data(head)

    def _render_head(self) -> bytes:
        """Return the request line and the headers as they came, without the upgrade offer.

        Raises:
            _NoTunnelsError: The method is CONNECT, to which there is no request but the tunnel.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _NoTunnelsError
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER_HEADERS]
        return b"\r\n".join([*lines, b"", b""])
