"""Bytes that are not HTTP, nearly HTTP, or HTTP that abuses the protocol."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import orjson

from loadtests.hostile.case import CHAT, CLOSE, HOST, JSON, Case, ask, bearer, chat, get, post, words

LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST
BODY = orjson.dumps(chat())
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
HEAD = f"POST {CHAT} HTTP/1.1\r\n".encode() + HOST + JSON + bearer() + CLOSE
KEPT = f"POST {CHAT} HTTP/1.1\r\n".encode() + HOST + JSON + bearer()
WHOLE = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

_NO_HTTP = words("400,cut")
_SERVED = words("200 single")
_TOO_MUCH = words("431,400,cut")


def _case(name: str, tried: str, allowed: frozenset[str] | str, *parts: bytes, **more: Any) -> Case:
    outcomes = words(allowed) if isinstance(allowed, str) else allowed
    return Case(f"http-{name}", tried, outcomes, parts, **more)


def _chunks(name: str, tried: str, allowed: str, body: bytes) -> Case:
    return _case(f"chunk-{name}", tried, allowed, HEAD + CHUNKED + b"\r\n" + body)


SMUGGLING = (
    _case("cl-te", "A length and chunks together, chunks last.", "400", HEAD + LENGTH + CHUNKED + b"\r\n" + WHOLE),
    _case("te-cl", "Chunks and a length together, length last.", "400", HEAD + CHUNKED + LENGTH + b"\r\n" + WHOLE),
    _case("cl-twice", "Two lengths that differ.", "400", HEAD + LENGTH + b"content-length: 1\r\n\r\n" + BODY),
    _case("cl-twice-same", "The same length twice.", "400", HEAD + LENGTH + LENGTH + b"\r\n" + BODY),
    _case("cl-list", "A list of lengths.", "400", HEAD + b"content-length: 5, 6\r\n\r\n" + BODY),
    _case("cl-minus", "A negative length.", "400", HEAD + b"content-length: -1\r\n\r\n" + BODY),
    _case("cl-plus", "A length with a sign.", "400", HEAD + b"content-length: +5\r\n\r\n" + BODY),
    _case("cl-hex", "A length in hexadecimal.", "400", HEAD + b"content-length: 0x10\r\n\r\n" + BODY),
    _case("cl-huge", "A length beyond 64 bits.", "400", HEAD + b"content-length: 99999999999999999999\r\n\r\n" + BODY),
    _case("cl-superscript", "A length of superscript digits.", "400", HEAD + b"content-length: \xb2\r\n\r\n" + BODY),
    _case("cl-empty", "A length without a number.", "400", HEAD + b"content-length: \r\n\r\n" + BODY),
    _case("cl-over-limit", "A length of a terabyte, and no body.", "413", HEAD + b"content-length: 1000000000000\r\n\r\n"),
    _case("cl-space", "A blank before the colon of the length.", "400", HEAD + b"content-length : 5\r\n\r\n" + BODY),
    _case("te-case", "Chunks announced in odd letters.", _SERVED, HEAD + b"Transfer-Encoding: cHuNkEd\r\n\r\n" + WHOLE),
    _case("te-identity", "An encoding that is none.", "400,415,408", HEAD + b"transfer-encoding: identity\r\n\r\n" + BODY),
    _case("te-gzip", "Chunks that say they are compressed, and are not.", "400,200 single", HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + WHOLE),
    _case("te-last", "Chunks that are not the last encoding.", "400",
          HEAD + b"transfer-encoding: chunked, gzip\r\n\r\n" + WHOLE),
    _case("te-twice", "Chunks announced twice.", "400,200 single", HEAD + CHUNKED + CHUNKED + b"\r\n" + WHOLE),
    _case("te-tab", "A tab where the encoding's blank should be.", "400,200 single",
          HEAD + b"transfer-encoding:\tchunked\r\n\r\n" + WHOLE),
    _case("te-vertical-tab", "A vertical tab before the encoding.", "400",
          HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + WHOLE),
    _case("te-http10", "Chunks under HTTP/1.0.", "400,200 single",
          HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n" + WHOLE),
    _case("get-with-body", "A GET whose body looks like a second request.", "200",
          LIVE + CLOSE + b"content-length: %d\r\n\r\n" % len(LIVE) + LIVE),
    _case("after-close", "A second request behind one that closes.", "200 single,200 single+400",
          ask() + LIVE + CLOSE + b"\r\n"),
    _case("prefixed", "A second request hidden behind a short length.", "400×2,400+405,400,400+404",
          KEPT + b"content-length: 1\r\n\r\n{GET /admin HTTP/1.1\r\nhost: x\r\n\r\n"),
    _case("trailer-authorization", "The key comes as a trailer, behind the body.", "401",
          HEAD.replace(bearer(), b"") + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY) + bearer() + b"\r\n"),
    _case("trailer-type", "The content type comes as a trailer.", "415",
          HEAD.replace(JSON, b"") + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY) + JSON + b"\r\n"),
)  # fmt: skip

_ENDLESS = b"a" * 65_536
CHUNKS = (
    _chunks("no-hex", "A chunk whose size is no number.", "400", b"zz\r\n" + BODY),
    _chunks("minus", "A chunk of negative size.", "400", b"-1\r\n" + BODY),
    _chunks("overflow", "A chunk whose size is beyond 64 bits.", "400", b"fffffffffffffffff\r\n" + BODY),
    _chunks("huge", "A chunk of an exabyte that never comes.", "408", b"fffffffffffffff\r\n" + BODY),
    _chunks("0x", "A chunk size with 0x before it.", "400", b"0x5\r\nhello\r\n0\r\n\r\n"),
    _chunks("longer", "A chunk longer than it says.", "400", b"5\r\nhello world\r\n0\r\n\r\n"),
    _chunks("lf", "Chunks that end with a line feed alone.", "400", WHOLE.replace(b"\r\n", b"\n")),
    _chunks("extension", "A chunk with an extension.", "200 single",
            b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    _chunks("extension-nul", "A NUL in a chunk's extension.", "400", b"5;a=\x00\r\nhello\r\n0\r\n\r\n"),
    _chunks("none", "Chunks that begin with the last one.", "400", b"0\r\n\r\n"),
    _chunks("tiny", "A body in chunks of one byte.", "200 single",
            b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    _chunks("over-limit", "Chunks that together are over the limit.", "413,cut", b"ffff\r\n%b\r\n" % (b" " * 0xFFFF) * 17),
    _case("chunk-extension-endless", "An extension of 64 MB.", "408,400,cut,431",
          HEAD + CHUNKED + b"\r\n5;a=", *[_ENDLESS] * 1024),
    _case("trailer-endless", "A trailer of 64 MB.", _TOO_MUCH,
          HEAD + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\nx-t: " % (len(BODY), BODY), *[_ENDLESS] * 1024),
    _case("trailers-endless", "A million trailers.", _TOO_MUCH | {"200 single"},
          HEAD + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY), *[b"x-t: aaaaaaaaaa\r\n" * 4096] * 256),
)  # fmt: skip

HEADERS = (
    _case("header-nul", "A NUL in a header's value.", _NO_HTTP, LIVE + b"x-a: a\x00b\r\n\r\n"),
    _case("header-name-nul", "A NUL in a header's name.", _NO_HTTP, LIVE + b"x\x00a: b\r\n\r\n"),
    _case("header-control", "Control bytes in a header's value.", _NO_HTTP, LIVE + b"x-a: \x01\x02\x07\x1b[2J\r\n\r\n"),
    _case("header-del", "A DEL in a header's value.", _NO_HTTP, LIVE + b"x-a: \x7f\r\n\r\n"),
    _case("header-folded", "A header folded over two lines.", "400,200", LIVE + CLOSE + b"x-a: b\r\n c\r\n\r\n"),
    _case("header-cr", "A bare carriage return in a header.", _NO_HTTP, LIVE + b"x-a: b\rx-c: d\r\n\r\n"),
    _case("header-lf", "Headers that end with a line feed alone.", "400,200", get("/health/live").replace(b"\r\n", b"\n")),
    _case("header-no-colon", "A header without a colon.", _NO_HTTP, LIVE + b"nonsense\r\n\r\n"),
    _case("header-no-name", "A header without a name.", _NO_HTTP, LIVE + b": b\r\n\r\n"),
    _case("header-space-name", "A header whose name has a blank.", _NO_HTTP, LIVE + b"x a: b\r\n\r\n"),
    _case("header-latin1", "Bytes above 127 in a header's value.", "200", get("/health/live", b"x-a: \xff\xfe\xe9\r\n")),
    _case("header-first-space", "A blank before the first header.", _NO_HTTP,
          b"GET /health/live HTTP/1.1\r\n x: y\r\n" + HOST + b"\r\n"),
    _case("headers-101", "One header more than is allowed.", "431",
          LIVE + b"".join(b"x-%d: 1\r\n" % index for index in range(101)) + b"\r\n"),
    _case("headers-100000", "A hundred thousand headers.", _TOO_MUCH,
          LIVE + b"".join(b"x-%d: 1\r\n" % index for index in range(100_000)) + b"\r\n"),
    _case("header-33k", "One header over the limit.", "431", LIVE + b"x-a: " + b"a" * 33_000 + b"\r\n\r\n"),
    _case("header-endless", "A header of 64 MB.", _TOO_MUCH, LIVE + b"x-a: ", *[_ENDLESS] * 1024),
    _case("header-name-endless", "A header's name of 64 MB.", _TOO_MUCH, LIVE, *[_ENDLESS] * 1024),
    _case("cookie-bomb", "A thousand cookies.", "431,200", get("/health/live", b"cookie: " + b"a=b; " * 7000 + b"\r\n")),
    _case("no-host", "No host.", "200,400", b"GET /health/live HTTP/1.1\r\n" + CLOSE + b"\r\n"),
    _case("hosts-two", "Two hosts.", "200,400", get("/health/live", b"host: evil.example\r\n")),
    _case("host-nonsense", "A host that is none.", "200,400", get("/health/live").replace(b"host: x", b"host: ][@#/\\")),
    _case("host-redirect", "A slash too many under a stranger's host name, for a redirect to there.", "404,401,405",
          post(BODY, path=CHAT + "/").replace(b"host: x", b"host: evil.example")),
    _case("upgrade-websocket", "An upgrade to a websocket.", "200,400",
          get("/health/live", b"upgrade: websocket\r\n").replace(b"close", b"upgrade")),
    _case("upgrade-h2c", "An upgrade to HTTP/2.", "200,400",
          get("/health/live", b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n").replace(b"close", b"upgrade, http2-settings")),
    _case("expect", "An expectation that nobody meets.", "200 single,417", post(BODY, b"expect: a-miracle\r\n")),
    _case("expect-100", "A body that waits to be asked for.", "200 single,100+200 single", post(BODY, b"expect: 100-continue\r\n")),
    _case("range", "A range of bytes of an answer.", "200", get("/health/live", b"range: bytes=0-0,5-6\r\n")),
    _case("encoding-gzip", "A body that says it is compressed.", "400,415,200 single", post(BODY, b"content-encoding: gzip\r\n")),
)  # fmt: skip

_OFFERS = {
    "h2c": b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "tls": b"connection: upgrade\r\nupgrade: TLS/1.3\r\n",
    "unknown": b"upgrade: \xff, h2c\r\nconnection: upgrade\r\n",
}
_HIDDEN = b"GET /metrics HTTP/1.1\r\n" + HOST + bearer("admin") + b"\r\n"
_HIDDEN_LENGTH = b"content-length: %d\r\n\r\n" % len(_HIDDEN)


def _offers(name: str, offer: bytes) -> tuple[Case, ...]:
    """Return POSTs with an upgrade offer: in one segment, with the body apart, in chunks, pipelined, hiding another."""
    head = HEAD + offer
    return (
        _case(f"offer-{name}", f"A POST offers {name}.", _SERVED, head + LENGTH + b"\r\n" + BODY),
        _case(f"offer-{name}-apart", f"A POST offers {name}; its body is a segment of its own.", _SERVED,
              head + LENGTH + b"\r\n", BODY, pause_s=0.1),
        _case(f"offer-{name}-chunks", f"A POST in chunks offers {name}.", _SERVED, head + CHUNKED + b"\r\n", WHOLE, pause_s=0.1),
        _case(f"offer-{name}-pipelined", f"A POST offers {name}; another follows.", "200×2 single",
              KEPT + offer + LENGTH + b"\r\n" + BODY + head + LENGTH + b"\r\n" + BODY),
        _case(f"offer-{name}-hides", f"A POST offers {name}; its body is a request for metrics.", "400",
              head + _HIDDEN_LENGTH, _HIDDEN, pause_s=0.1),
    )  # fmt: skip


OFFERS = tuple(case for name, offer in _OFFERS.items() for case in _offers(name, offer))


def _bomb(window_bits: int) -> bytes:
    """Return fifty megabytes of zeros, compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(50)) + packer.flush()


def _packed(name: str, tried: str, allowed: str, encoding: bytes, body: bytes) -> Case:
    return _case(f"packed-{name}", tried, allowed, post(body, b"content-encoding: " + encoding + b"\r\n"))


_BOMB = _bomb(31)
PACKED = (
    _packed("gzip", "A body in gzip.", "200 single", b"gzip", gzip.compress(BODY)),
    _packed("bomb-gzip", "Fifty megabytes of zeros in gzip.", "413", b"gzip", _BOMB),
    _packed("bomb-deflate", "Fifty megabytes of zeros in deflate.", "413", b"deflate", _bomb(15)),
    _packed("bomb-json", "A good body and then fifty megabytes of blanks.", "413", b"gzip",
            gzip.compress(BODY + b" " * 50_000_000)),
    _packed("bomb-twice", "A bomb within a bomb.", "415", b"gzip, gzip", gzip.compress(_BOMB)),
    _packed("bomb-inner", "A bomb within a bomb, of which one layer is told.", "400", b"gzip", gzip.compress(_BOMB)),
    _packed("members", "Ten thousand empty gzip members.", "400", b"gzip", gzip.compress(b"") * 10_000),
    _packed("cut", "A body in gzip that is cut.", "400", b"gzip", gzip.compress(BODY)[:-9]),
    _packed("brotli", "A body in brotli.", "415", b"br", b"\x8b\x00\x80\x03"),
    _packed("zstd", "A body in zstd.", "415", b"zstd", b"\x28\xb5\x2f\xfd"),
)  # fmt: skip

_PATHS = {
    "traversal": "/../../../etc/passwd",
    "traversal-encoded": "/%2e%2e/%2e%2e/etc/passwd",
    "traversal-model": "/v1/models/../../etc/passwd",
    "nul": "/v1/models/%00",
    "crlf": "/v1/models/%0d%0aset-cookie:%20a=b",
    "overlong": "/%c0%ae%c0%ae/",
    "percent": "/v1/models/%zz%",
    "double-slash": "//evil.example/v1/models",
    "backslash": "/v1\\models",
    "semicolon": "/v1/models;a=b",
    "long": "/" + "a" * 30_000,
    "query": "/nowhere?" + "a=b&" * 7_000,
    "unicode": "/v1/models/%F0%9F%92%A9",
    "fragment": "/nowhere#a",
    "asterisk": "*",
}
PATHS = (
    *(_case(f"path-{name}", f"A path that leads astray: {name}.", "404,401,400", get(path)) for name, path in _PATHS.items()),
    _case("path-raw-bytes", "Raw bytes above 127 in the path.", "400", get("/").replace(b"/ ", b"/\xff\xfe ")),
    _case("path-nul-raw", "A raw NUL in the path.", "400", get("/").replace(b"/ ", b"/\x00 ")),
    _case("path-space", "A blank in the path.", "400", get("/a b")),
    _case("path-empty", "No path.", "400", b"GET  HTTP/1.1\r\n" + HOST + b"\r\n"),
    _case("path-endless", "A path of 64 MB.", _TOO_MUCH, b"GET /", *[_ENDLESS] * 1024),
    _case("path-absolute", "A whole URL in the request line.", "200,404,400", get("http://evil.example/health/live")),
    _case("path-absolute-port", "A whole URL with a port beyond 65,535.", "400,200", get("http://evil.example:99999/health/live")),
    _case("path-absolute-file", "A file's URL in the request line.", "400,404", get("file:///etc/passwd")),
    _case("path-authority", "CONNECT to somewhere else.", "400,404,405", get("evil.example:443", method="CONNECT")),
)  # fmt: skip

_METHODS = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "PURGE", "M-SEARCH")
METHODS = (
    *(_case(f"method-{name.lower()}", f"{name} where only POST is served.", "405", get(CHAT, method=name)) for name in _METHODS),
    _case("method-post-live", "POST where only GET is served.", "405", post(b"{}", path="/health/live")),
    _case("method-unknown", "A method that HTTP does not have.", "400", get("/health/live", method="FETCH")),
    _case("method-lower", "A method in small letters.", "400", get("/health/live", method="get")),
    _case("method-long", "A method of 20,000 letters.", "400", get("/health/live", method="A" * 20_000)),
    _case("method-override", "A method that overrides another by a header.", "405",
          get(CHAT, b"x-http-method-override: POST\r\n")),
    _case("version-09", "HTTP/0.9.", "400,cut,200", b"GET /health/live\r\n\r\n"),
    _case("version-10", "HTTP/1.0.", "200", b"GET /health/live HTTP/1.0\r\n\r\n"),
    _case("version-20", "HTTP/2's preface.", _NO_HTTP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    _case("version-99", "HTTP/9.9.", _NO_HTTP, b"GET /health/live HTTP/9.9\r\n\r\n"),
    _case("version-rtsp", "Another protocol of the same shape.", "400,cut,405", b"SETUP /health/live RTSP/1.0\r\n\r\n"),
    _case("tls", "A TLS handshake.", _NO_HTTP, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))),
    _case("garbage", "Every byte there is.", _NO_HTTP, bytes(range(256)) * 64),
    _case("redis", "Redis's protocol.", _NO_HTTP, b"*1\r\n$4\r\nPING\r\n"),
    _case("smtp", "A mailer's greeting.", _NO_HTTP, b"EHLO evil.example\r\n"),
)  # fmt: skip

TIME = (
    _case("nothing", "A connection that says nothing.", "cut"),
    _case("half-line", "Half a request line, then silence.", "cut", b"GET /hea"),
    _case("half-headers", "Half of the headers, then silence.", "cut", LIVE),
    _case("blank-lines", "Blank lines and nothing else.", "cut", b"\r\n" * 100),
    _case("slow-headers", "Headers that come a byte at a time.", "cut",
          *[bytes([byte]) for byte in get("/health/live")], pause_s=0.1),
    _case("slow-body", "A body that comes a byte at a time.", "408", HEAD + LENGTH + b"\r\n",
          *[bytes([byte]) for byte in BODY[:40]], pause_s=0.1),
    _case("half-body", "Half a body, then silence.", "408", HEAD + LENGTH + b"\r\n" + BODY[:20]),
    _case("hang-up-in-headers", "The caller hangs up within the headers.", _NO_HTTP, LIVE, hang_up=True),
    _case("hang-up-in-body", "The caller hangs up within the body.", "cut,408,400",
          HEAD + LENGTH + b"\r\n" + BODY[:20], hang_up=True),
    _case("half-closed", "The caller closes its sending side and still listens.", "cut,200 single", ask(), hang_up=True),
    _case("does-not-read", "A caller who reads nothing of what it asked for.", "200 single,200 scored,cut",
          ask(stream=True), reads=False),
    _case("pipelined", "Fifty requests at once on one connection.", "200×50",
          (LIVE + b"\r\n") * 49 + get("/health/live")),
    _case("pipelined-chats", "Five chats at once on one connection.", "200×5 single",
          post(BODY, close=b"") * 4 + ask()),
    _case("pipelined-garbage", "Garbage behind a good request.", "200,400,200+400,400+200",
          LIVE + b"\r\n" + b"\x00\x01\x02 nonsense\r\n\r\n"),
    _case("pipelined-flood", "Twenty thousand requests on a connection whose caller reads nothing.",
          words({"cut", "200", *(f"200×{count}" for count in range(2, 101))}),
          *[(LIVE + b"\r\n") * 100] * 200, reads=False),
)  # fmt: skip

CASES = (*SMUGGLING, *CHUNKS, *HEADERS, *OFFERS, *PACKED, *PATHS, *METHODS, *TIME)
