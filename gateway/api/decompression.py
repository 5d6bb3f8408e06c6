"""Compressed request bodies: gzip and deflate, within the limit that holds for any body."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedContentEncoding

ENCODINGS = ("gzip", "deflate")
_ALIASES = {"x-gzip": "gzip"}
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib tells the two apart by their first bytes


class Decompressor:
    """Decompress one body piece by piece.

    Args:
        limit_bytes: Largest body after decompression; at most one byte more is ever produced.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)

    def feed(self, data: bytes) -> bytes:
        """Decompress the next piece.

        Raises:
            RequestTooLarge: The body would be over the limit.
            InvalidRequest: This is not compressed data, or other data follows it.
        """
        try:
            body = self._zlib.decompress(data, self._left_bytes + 1)
        except zlib.error:
            raise InvalidRequest("the body is not what its content-encoding says: it cannot be decompressed") from None
        self._left_bytes -= len(body)
        if self._left_bytes < 0:
            raise RequestTooLarge("the request body, decompressed, is over this server's limit")
        if self._zlib.unused_data:
            raise InvalidRequest("the compressed body has data after its end")
        return body

    def finish(self) -> None:
        """Raise ``InvalidRequest`` if the end of the compressed data is missing."""
        if not self._zlib.eof:
            raise InvalidRequest("the compressed body is cut short")


def decompressor_for(content_encodings: Iterable[str], *, limit_bytes: int) -> Decompressor | None:
    """Return the decompressor for the values of the content-encoding headers; None if the body is not compressed.

    Raises:
        UnsupportedContentEncoding: The encoding is not supported, or several are combined.
    """
    names = [name.strip().lower() for value in content_encodings for name in value.split(",")]
    applied = [_ALIASES.get(name, name) for name in names if name not in {"", "identity"}]
    if not applied:
        return None
    if len(applied) > 1 or applied[0] not in ENCODINGS:
        raise UnsupportedContentEncoding(
            f"the body may be sent as it is, or compressed once with {' or '.join(ENCODINGS)} (content-encoding)"
        )
    return Decompressor(limit_bytes)
