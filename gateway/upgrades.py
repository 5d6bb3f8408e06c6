"""HTTP/1.1 connections that ignore every upgrade offer, as RFC 9110 7.8 allows.

Java's HttpClient and ``curl --http2`` send ``Upgrade: h2c`` with every request. The request is served without the
upgrade. uvicorn's parser cannot do that: it takes the bytes after the headers for another protocol; uvicorn then
answers without the body, and reads a body that arrives in its own segment as a second request. So a new parser parses
the head again without the offer, and gets the body.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER_HEADERS = frozenset({b"upgrade", b"http2-settings"})


class _NoTunnelsError(Exception):
    """Raised to end the parsing; httptools turns it into an error of its own."""


class NoUpgradesProtocol(HttpToolsProtocol):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._head_without_offer: bytes | None = None

    def data_received(self, data: bytes) -> None:
        """Parse as uvicorn does, but restart each request that has an upgrade offer without it."""
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_headers_complete(self) -> None:
        """Begin the request; if it has an upgrade offer, keep its head to parse it again."""
        if self.parser.should_upgrade():
            self._head_without_offer = self._render_head()
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless the parser says so of a head with an upgrade offer, whose body follows."""
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
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)

    def _render_head(self) -> bytes:
        """Return the request line and the headers as received, without the upgrade offer.

        Raises:
            _NoTunnelsError: The method is CONNECT, which is a request for a tunnel and nothing else.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _NoTunnelsError
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER_HEADERS]
        return b"\r\n".join([*lines, b"", b""])
