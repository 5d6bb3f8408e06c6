"""Answers of the backend and of the reward server that a correct server would never send."""

from __future__ import annotations

import zlib
from typing import Any

import orjson

from loadtests.hostile.case import ANSWER, Case, ask, words
from loadtests.hostile.impostor import Script

_CHAT, _CLASSIFY, _MODELS = b"POST /v1/chat/completions", b"POST /classify", b"GET /v1/models"
_MEGABYTE = 2**20
_BIG = b"a" * _MEGABYTE
_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}

# Acceptable outcomes of a backend at fault: its errors are passed on as such, never as ours.
_UPSTREAM = words("502,504,429")
_BELIEVED = _UPSTREAM | {"200 single"}
_CUT_SHORT = _BELIEVED | {"200 error event"}
# If the reward server is at fault, the caller gets a flagged answer and no error.
_FLAGGED = words("200 fallback")


def _gzip_bomb(megabytes: int) -> bytes:
    """Return a gzip stream of this many megabytes of zeros: a thousandth of them on the wire."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(_MEGABYTE)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * megabytes + b"\x03\0"


def _http(body: bytes, *headers: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    """Return a whole HTTP answer that ends its connection."""
    head = [b"HTTP/1.1 " + status, b"content-type: " + kind, b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join([*head, *headers]) + b"\r\n\r\n" + body


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def _completion(
    message: Any = None, *, usage: Any = _USAGE, logprobs: Any = None, finish: Any = "stop", **top: Any
) -> dict[str, Any]:
    said = {"role": "assistant", "content": ANSWER} if message is None else message
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "", "object": "chat.completion", "choices": [choice], "usage": usage, **top}


def _deep(depth: int, core: bytes = b"1") -> bytes:
    return b'{"a":' * depth + core + b"}" * depth


def _with(body: Any, raw: bytes) -> bytes:
    """Return the body as JSON, with these bytes in place of its ``"@"``."""
    return orjson.dumps(body).replace(b'"@"', raw)


def _entry(**more: Any) -> dict[str, Any]:
    return {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [], **more}]}


def _call(**function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "0", "type": "function", "function": {"name": "look", **function}}]}


def _chunk(delta: Any, finish: Any = None, logprobs: Any = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


_END = b"data: " + orjson.dumps({"choices": [], "usage": _USAGE}) + b"\n\ndata: [DONE]\n\n"
_GOOD = _chunk({"content": ANSWER}) + _chunk({"content": "."}, "stop") + _END


def _case(
    name: str, tried: str, *parts: bytes, allowed: frozenset[str] = _BELIEVED, then: Any = "close", **fields: Any
) -> Case:
    script = Script(parts, when=_CHAT, then=then)
    return Case(f"backend-{name}", tried, allowed, (ask(**fields),), backend=script)


def _whole(name: str, tried: str, body: Any, *, allowed: frozenset[str] = _BELIEVED, **fields: Any) -> Case:
    """Return a case for the body of a plain call's answer; logprobs are requested, so that they are read."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return _case(f"json-{name}", tried, _http(raw), allowed=allowed, **{"logprobs": True, **fields})


def _stream(
    name: str, tried: str, *parts: bytes, allowed: frozenset[str] = _CUT_SHORT, then: Any = "close", **fields: Any
) -> Case:
    return _case(f"sse-{name}", tried, _SSE + parts[0], *parts[1:], allowed=allowed, then=then, stream=True, **fields)


HTTP = (
    _case("nothing", "It hangs up without a word.", b"", allowed=_UPSTREAM),
    _case("silent", "It never answers.", b"", allowed=_UPSTREAM, then="hang"),
    _case("no-http", "What it says is no HTTP.", ANSWER.encode() * 100, allowed=_UPSTREAM),
    _case("control-bytes", "Every byte there is.", bytes(range(256)) * 10, allowed=_UPSTREAM),
    _case("http2", "HTTP/2's preface.", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", allowed=_UPSTREAM),
    _case("status-999", "A status that HTTP does not have.", _http(b"{}", status=b"999 What"), allowed=_UPSTREAM),
    _case("status-000", "A status of zero.", _http(b"{}", status=b"000 None"), allowed=_UPSTREAM),
    _case("status-204", "An answer without content.", b"HTTP/1.1 204 No Content\r\n\r\n", allowed=_UPSTREAM),
    _case("status-101", "A switch to another protocol.", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + _BIG,
          allowed=_UPSTREAM),
    _case("status-422", "A refusal that quotes the request.", _http(orjson.dumps({"error": ANSWER}), status=b"422 No"),
          allowed=words("400")),
    _case("status-422-huge", "A refusal of 8 MB.",
          _http(orjson.dumps({"error": "Input validation error: " + "a" * 2**23}), status=b"422 No"), allowed=words("400")),
    _case("status-500-html", "An error of HTML.", _http(b"<h1>" + ANSWER.encode(), status=b"500 No", kind=b"text/html"),
          allowed=_UPSTREAM),
    _case("status-503-deep", "An error nested 100,000 deep.", _http(_deep(100_000), status=b"503 No"), allowed=_UPSTREAM),
    _case("100-once", "An interim answer before the answer.", b"HTTP/1.1 100 Continue\r\n\r\n" + _http(orjson.dumps(_completion()))),
    _case("100-many", "100,000 interim answers and no other.", b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, allowed=_UPSTREAM),
    _case("103-headers", "Early hints with a megabyte of links.",
          b"HTTP/1.1 103 Early Hints\r\n" + b"link: <a>\r\n" * 100_000 + b"\r\n" + _http(orjson.dumps(_completion())),
          allowed=_BELIEVED),
    _case("header-endless", "A header without end.", b"HTTP/1.1 200 OK\r\nx-a: ", _BIG, then="repeat", allowed=_UPSTREAM),
    _case("headers-endless", "Headers without end.", b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n" * 10_000, then="repeat",
          allowed=_UPSTREAM),
    _case("headers-control", "Control bytes in headers.", _http(orjson.dumps(_completion()), b"x-a: \x00\x01\x1b[2J")),
    _case("headers-injected", "Headers that are meant for the caller.",
          _http(orjson.dumps(_completion()), b"x-bon-selection: scored", b"set-cookie: a=b", b"x-request-id: evil")),
    _case("length-short", "A length shorter than the body.", _HEAD + b"content-length: 5\r\n\r\n" + orjson.dumps(_completion()),
          allowed=_UPSTREAM),
    _case("length-long", "A length longer than the body.", _HEAD + b"content-length: 5000\r\n\r\n" + orjson.dumps(_completion()),
          allowed=_UPSTREAM),
    _case("length-exabyte", "A length of an exabyte.", _HEAD + b"content-length: 1000000000000000000\r\n\r\n{", allowed=_UPSTREAM,
          then="hang"),
    _case("length-minus", "A negative length.", _HEAD + b"content-length: -5\r\n\r\n{}", allowed=_UPSTREAM),
    _case("length-and-chunks", "A length and chunks together.",
          _HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", allowed=_UPSTREAM),
    _case("chunk-no-hex", "A chunk whose size is no number.", _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
          allowed=_UPSTREAM),
    _case("chunk-exabyte", "A chunk of an exabyte, sent.", _HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n", _BIG,
          then="repeat", allowed=_UPSTREAM),
    _case("chunk-extension", "A chunk's extension without end.", _HEAD + b"transfer-encoding: chunked\r\n\r\n5;", _BIG, then="repeat",
          allowed=_UPSTREAM),
    _case("trailers-endless", "Trailers without end.", _HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-a: b\r\n" * 10_000,
          then="repeat", allowed=_UPSTREAM),
    _case("body-endless", "A body without end.", _HEAD + b"\r\n", _BIG, then="repeat", allowed=_UPSTREAM),
    _case("body-32mb", "A text of 31 MB.", _http(orjson.dumps(_completion({"role": "assistant", "content": "a" * 31 * _MEGABYTE})))),
    _case("body-cut", "Half of an answer.", _http(orjson.dumps(_completion()))[:-30], allowed=_UPSTREAM),
    _case("gzip-bomb", "2 GB of zeros in 2 MB.", _http(_gzip_bomb(2048), b"content-encoding: gzip"), allowed=_UPSTREAM),
    _case("gzip-bomb-stream", "2 GB of zeros in 2 MB, as a stream.", _http(_gzip_bomb(2048), b"content-encoding: gzip"),
          allowed=_UPSTREAM, stream=True),
    _case("gzip-bomb-error", "2 GB of zeros in 2 MB, as an error.",
          _http(_gzip_bomb(2048), b"content-encoding: gzip", status=b"500 No"), allowed=_UPSTREAM),
    _case("deflate-garbage", "A compressed answer that is none.", _http(b"\xff" * 1000, b"content-encoding: deflate"),
          allowed=_UPSTREAM),
    _case("encoding-unknown", "An encoding that nobody knows.", _http(orjson.dumps(_completion()), b"content-encoding: x")),
    _case("charset", "A character set that nobody should believe.",
          _http(orjson.dumps(_completion()), kind=b"application/json; charset=utf-7")),
)  # fmt: skip

_MESSAGE = {"role": "assistant", "content": ANSWER}
WHOLE = (
    _whole("empty", "Nothing.", b"", allowed=_UPSTREAM),
    _whole("half", "Half a document.", orjson.dumps(_completion())[:-20], allowed=_UPSTREAM),
    _whole("html", "HTML under a status of 200.", b"<html>" + ANSWER.encode(), allowed=_UPSTREAM),
    _whole("bom", "A byte order mark.", b"\xef\xbb\xbf" + orjson.dumps(_completion())),
    _whole("invalid-utf8", "Bytes that are no UTF-8.", orjson.dumps(_completion()).replace(b"zyz", b"\xff\xfe"), allowed=_UPSTREAM),
    _whole("surrogate", "A lone surrogate.", orjson.dumps(_completion()).replace(b"zyz", b"\\ud800"), allowed=_UPSTREAM),
    _whole("list", "A list.", [_completion()], allowed=_UPSTREAM),
    _whole("null", "null.", None, allowed=_UPSTREAM),
    _whole("string", "A string.", ANSWER, allowed=_UPSTREAM),
    _whole("deep", "100,000 objects in one another.", _deep(100_000), allowed=_UPSTREAM),
    _whole("no-choices", "No choices.", {"usage": _USAGE}, allowed=_UPSTREAM),
    _whole("choices-text", "Choices that are a text.", {"choices": ANSWER, "usage": _USAGE}, allowed=_UPSTREAM),
    _whole("choices-null", "A choice of nothing.", {"choices": [None], "usage": _USAGE}, allowed=_UPSTREAM),
    _whole("choices-100000", "100,000 choices.", {"choices": [{"message": _MESSAGE, "finish_reason": "stop"}] * 100_000, "usage": _USAGE}),
    _whole("message-list", "A message that is a list.", _completion([]), allowed=_UPSTREAM),
    _whole("content-number", "Content that is a number.", _completion({"content": 5}), allowed=_UPSTREAM),
    _whole("content-controls", "Content of control characters.", _completion({"content": "".join(map(chr, range(32))) + "\x7f\x9b"})),
    _whole("content-separators", "Content with Unicode's own line ends.", _completion({"content": "a\u2028b\u2029c\u0085d"})),
    _whole("content-sse", "Content that looks like an event.", _completion({"content": "\n\ndata: [DONE]\n\n"})),
    _whole("finish-unknown", "A finish reason that nobody knows.", _completion(finish=ANSWER), allowed=_UPSTREAM),
    _whole("finish-list", "A finish reason that is a list.", _completion(finish=["stop"]), allowed=_UPSTREAM),
    _whole("finish-null", "No finish reason.", _completion(finish=None), allowed=_UPSTREAM),
    _whole("usage-none", "No usage.", _completion(usage=None), allowed=_UPSTREAM),
    _whole("usage-minus", "Negative token counts.", _completion(usage={"prompt_tokens": -5, "completion_tokens": -7}), allowed=_UPSTREAM),
    _whole("usage-fraction", "Token counts with a fraction.", _completion(usage={"prompt_tokens": 5.5, "completion_tokens": 7}),
           allowed=_UPSTREAM),
    _whole("usage-true", "Token counts that are true.", _completion(usage={"prompt_tokens": True, "completion_tokens": True}),
           allowed=_UPSTREAM),
    _whole("usage-2-64", "Token counts that together are beyond 64 bits.",
           _completion(usage={"prompt_tokens": 2**64 - 1, "completion_tokens": 2**64 - 1}), allowed=_UPSTREAM),
    _whole("usage-2-53", "Token counts that cost a key its budget for ever.",
           _completion(usage={"prompt_tokens": 2**53, "completion_tokens": 2**53}), allowed=_UPSTREAM),
    _whole("usage-1e400", "Token counts beyond any number.", _with(_completion(usage={"prompt_tokens": "@", "completion_tokens": 1}), b"1e400"),
           allowed=_UPSTREAM),
    _whole("logprobs-nan", "Logprobs of NaN.", _with(_completion(logprobs=_entry(logprob="@")), b"NaN"), allowed=_UPSTREAM),
    _whole("logprobs-1e400", "Logprobs beyond any number.", _with(_completion(logprobs=_entry(logprob="@")), b"-1e400")),
    _whole("logprobs-text", "Logprobs that are texts.", _completion(logprobs=_entry(logprob=ANSWER)), allowed=_UPSTREAM),
    _whole("logprobs-positive", "Logprobs above zero.", _completion(logprobs=_entry(logprob=5.0))),
    _whole("logprobs-deep", "Logprobs nested 300 deep.", _with(_completion(logprobs=_entry(logprob="@")), _deep(300)), allowed=_UPSTREAM),
    _whole("logprobs-bytes-deep", "A token's bytes nested 300 deep.", _with(_completion(logprobs=_entry(bytes="@")), _deep(300)),
           allowed=_UPSTREAM),
    _whole("logprobs-bytes-text", "A token's bytes that are a text.", _completion(logprobs=_entry(bytes=ANSWER)), allowed=_UPSTREAM),
    _whole("logprobs-token", "Tokens that are numbers.", _completion(logprobs=_entry(token=5)), allowed=_UPSTREAM),
    _whole("logprobs-number", "Logprobs that are a number.", _completion(logprobs=5), allowed=_UPSTREAM),
    _whole("logprobs-content", "Logprobs whose content is a number.", _completion(logprobs={"content": 5}), allowed=_UPSTREAM),
    _whole("logprobs-tops", "Alternatives that are a number.", _completion(logprobs=_entry(top_logprobs=5)), allowed=_UPSTREAM),
    _whole("logprobs-tops-object", "Alternatives that are an object.", _completion(logprobs=_entry(top_logprobs={"a": 1})), allowed=_UPSTREAM),
    _whole("logprobs-100000", "Logprobs of 100,000 tokens.", _completion(logprobs={"content": _entry()["content"] * 100_000})),
    _whole("calls-number", "Calls that are a number.", _completion({"tool_calls": 5}), allowed=_UPSTREAM),
    _whole("calls-nameless", "A call without a name.", _completion({"tool_calls": [{"function": {}}]}), allowed=_UPSTREAM),
    _whole("calls-deep", "A call whose arguments are nested 300 deep.", _with(_completion(_call(arguments="@")), _deep(300)),
           allowed=_UPSTREAM),
    _whole("calls-name-object", "A call whose name is an object.", _completion(_call(name={})), allowed=_UPSTREAM),
    _whole("calls-path", "A call to a tool that nobody offered.", _completion(_call(name="../../bin/sh", arguments="{"))),
    _whole("calls-id", "A call whose id is an object.", _completion({"tool_calls": [{"id": {}, "function": {"name": "f"}}]})),
    _whole("calls-100000", "100,000 calls.", _completion({"tool_calls": _call()["tool_calls"] * 100_000})),
    _whole("error-200", "An error under a status of 200.", {"error": ANSWER}, allowed=_UPSTREAM | {"400"}),
    _whole("error-object", "An error that is an object of odd things.", {"error": {"message": [ANSWER], "code": {}, "http_status_code": []}},
           allowed=_UPSTREAM | {"400"}),
    _whole("error-code-2-70", "An error whose code is beyond 64 bits.", {"error": {"code": 2**63, "message": ANSWER}}, allowed=_UPSTREAM),
    _whole("keys-twice", "The choices twice.", b'{"choices":[],' + orjson.dumps(_completion())[1:]),
    _whole("long-stop", "A text that nearly holds a long stop string at each of 200,000 places.",
           _completion({"content": "a" * 200_000 + "b"}), stop="a" * 999 + "c"),
)  # fmt: skip

STREAMS = (
    _stream("nothing", "A stream of nothing.", b"", allowed=_UPSTREAM),
    _stream("silent", "A stream that says nothing.", b"", then="hang"),
    _stream("comments", "Comments without end.", b": keep-alive\n\n" * 1000, then="repeat"),
    _stream("blank-lines", "Blank lines without end.", b"\n" * 65_536, then="repeat"),
    _stream("no-newline", "An event without end.", b"data: ", _BIG, then="repeat", allowed=_UPSTREAM),
    _stream("events-endless", "Events without end.", _chunk({"content": ANSWER}) * 1000, then="repeat"),
    _stream("empty-events-endless", "Events of nothing without end.", _chunk({"content": ""}) * 1000, then="repeat"),
    _stream("cut", "A stream that breaks off.", _chunk({"content": ANSWER})),
    _stream("cut-in-event", "A stream that breaks off within an event.", _chunk({"content": ANSWER}) + b'data: {"choi'),
    _stream("cut-in-character", "A stream that breaks off within a character.", _chunk({"content": ANSWER}) + b"data: \xf0\x9f"),
    _stream("not-json", "Events that are no JSON.", b"data: " + ANSWER.encode() + b"\n\n" + _END),
    _stream("half-json", "Half a document in an event.", b'data: {"choices":\n\n' + _END),
    _stream("deep", "An event nested 100,000 deep.", b"data: " + _deep(100_000) + b"\n\n" + _END),
    _stream("arguments-deep", "A call's arguments nested 300 deep.",
            _chunk(_call(arguments="@")).replace(b'"@"', _deep(300)) + _END, allowed=_UPSTREAM),
    _stream("logprobs-deep", "Logprobs nested 300 deep.",
            _chunk({"content": "a"}, logprobs=_entry(logprob="@")).replace(b'"@"', _deep(300)) + _GOOD, allowed=_UPSTREAM, logprobs=True),
    _stream("list", "An event that is a list.", b"data: [1]\n\n" + _END),
    _stream("null", "An event of null.", b"data: null\n\n" + _END),
    _stream("invalid-utf8", "An event that is no UTF-8.", _chunk({"content": ANSWER}).replace(b"zyz", b"\xff\xfe") + _END),
    _stream("nul", "NULs between the events.", b"\0\0\n" + _GOOD),
    _stream("crlf", "Events with carriage returns.", _GOOD.replace(b"\n", b"\r\n"), allowed=words("200 single")),
    _stream("cr", "Events that end with a carriage return alone.", _GOOD.replace(b"\n", b"\r"), allowed=words("200 single")),
    _stream("bom", "A byte order mark before the first event.", b"\xef\xbb\xbf" + _GOOD),
    _stream("separators", "Unicode's own line ends within an event.",
            _chunk({"content": "a\u2028b\u2029c\u0085d"}) + _GOOD, allowed=words("200 single")),
    _stream("other-fields", "Events with ids, names and retries.", b"id: 1\nevent: evil\nretry: 0\n" + _GOOD),
    _stream("done-first", "The end before the beginning.", b"data: [DONE]\n\n" + _GOOD, allowed=_UPSTREAM),
    _stream("done-never", "An end that is never told.", _GOOD.replace(b"data: [DONE]\n\n", b"")),
    _stream("after-done", "A megabyte behind the end.", _GOOD + _BIG, allowed=words("200 single")),
    _stream("error-frame", "An error in the middle.",
            _chunk({"content": ANSWER}) + b"data: " + orjson.dumps({"error": {"message": ANSWER, "http_status_code": 500}}) + b"\n\n"),
    _stream("usage-minus", "Negative counts at the end.",
            _chunk({"content": "a"}, "stop") + b'data: {"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":-1}}\n\n'),
    _stream("usage-2-64", "Counts beyond 64 bits at the end.", _chunk({"content": "a"}, "stop") +
            b'data: {"choices":[],"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615}}\n\n'),
    _stream("usage-list", "Counts that are a list.", _chunk({"content": "a"}, "stop") + b'data: {"choices":[],"usage":[1]}\n\n'),
    _stream("index-huge", "A call with an index beyond 64 bits.",
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":99999999999999999999,"function":{"name":"f"}}]}}]}\n\n' + _END),
    _stream("calls-10000", "10,000 calls side by side.",
            _chunk({"tool_calls": [{"index": index, "function": {"name": "f", "arguments": ""}} for index in range(10_000)]}) + _END),
    _stream("html", "HTML for a stream.", b"<html>" + ANSWER.encode()),
)  # fmt: skip

_NOWHERE = "the canary listens there"


def redirects(canary_port: int) -> tuple[Case, ...]:
    """Return redirects to the canary, from everything that the gateway calls."""
    to = b"location: http://127.0.0.1:%d/canary" % canary_port
    more = (b"refresh: 0; url=http://127.0.0.1:%d/" % canary_port, b'alt-svc: h2=":%d"' % canary_port)
    return (
        *(
            _case(f"redirect-{status.split()[0].decode()}", f"A redirect to somewhere else: {status.decode()}.",
                  _http(b"", to, *more, status=status), allowed=_UPSTREAM)
            for status in (b"301 Moved", b"302 Found", b"307 Temporary", b"308 Permanent")
        ),
        _case("redirect-stream", "A redirect of a stream.", _http(b"", to, status=b"307 Temporary"), allowed=_UPSTREAM, stream=True),
        _reward("redirect", "A redirect to somewhere else.", _http(b"", to, *more, status=b"307 Temporary")),
        _reward("models-redirect", "A redirect of the question who it is.", _http(b"", to, status=b"301 Moved"), when=_MODELS),
    )  # fmt: skip


def _reward(name: str, tried: str, *parts: bytes, when: bytes = _CLASSIFY, then: Any = "close",
            allowed: frozenset[str] = _FLAGGED) -> Case:  # fmt: skip
    script = Script(parts, when=when, then=then)
    return Case(f"reward-{name}", tried, allowed, (ask(best_of=2),), reward=script, forgets=when == _MODELS)


def _rows(*values: Any, **more: Any) -> bytes:
    rows = [{"index": index, "label": "LABEL_0", "probs": [value], **more} for index, value in enumerate(values)]
    return orjson.dumps({"object": "list", "data": rows})


def _cards(*cards: Any) -> bytes:
    return _http(orjson.dumps({"object": "list", "data": list(cards)}))


_CARD = {"id": "stub/reward", "object": "model", "owned_by": "ratchet"}
REWARDS = (
    _reward("nothing", "It hangs up without a word.", b""),
    _reward("silent", "It never answers.", b"", then="hang"),
    _reward("no-http", "What it says is no HTTP.", ANSWER.encode() * 100),
    _reward("html", "HTML under a status of 200.", _http(b"<html>" + ANSWER.encode(), kind=b"text/html")),
    _reward("empty", "Nothing under a status of 200.", _http(b"")),
    _reward("half", "Half a document.", _http(_rows(1.0, 2.0)[:-9])),
    _reward("nan", "Rewards of NaN.", _http(_rows("@", "@").replace(b'"@"', b"NaN"))),
    _reward("infinity", "Rewards without bound.", _http(_rows("@", "@").replace(b'"@"', b"Infinity"))),
    _reward("1e400", "Rewards beyond any number.", _http(_rows("@", "@").replace(b'"@"', b"1e400"))),
    _reward("1e308", "Rewards at the end of all numbers.", _http(_rows(1e308, -1e308)), allowed=words("200 fallback,200 scored")),
    _reward("2-64", "Rewards that are huge whole numbers.", _http(_rows(2**64 - 1, -(2**63))), allowed=words("200 fallback,200 scored")),
    _reward("digits", "Rewards of 10,000 digits.", _http(_rows("@", "@").replace(b'"@"', b"9" * 10_000))),
    _reward("null", "Rewards of null.", _http(_rows(None, None))),
    _reward("text", "Rewards in words.", _http(_rows("1.0", ANSWER))),
    _reward("true", "Rewards of true.", _http(_rows(True, False))),
    _reward("list", "Rewards that are lists.", _http(_rows([1.0], [2.0]))),
    _reward("too-few", "A reward too few.", _http(orjson.dumps({"data": []}))),
    _reward("too-many", "A thousand rewards too many.", _http(_rows(*range(1000)))),
    _reward("order", "Rewards in another order.", _http(_rows(1.0, index=7))),
    _reward("index-float", "An index with a fraction.", _http(_rows(1.0, index=0.5))),
    _reward("two-labels", "Two labels for one answer.", _http(orjson.dumps({"data": [{"index": 0, "probs": [0.5, 0.5]}]}))),
    _reward("data-object", "Rewards that are an object.", _http(orjson.dumps({"data": {"0": 1.0}}))),
    _reward("data-numbers", "Rewards that are bare numbers.", _http(orjson.dumps({"data": [1.0, 2.0]}))),
    _reward("deep", "100,000 lists in one another.", _http(b"[" * 100_000 + b"]" * 100_000)),
    _reward("20mb", "20 MB of rewards.", _http(_rows(*[1.0] * 300_000))),
    _reward("endless", "A body without end.", _HEAD + b"\r\n", _BIG, then="repeat"),
    _reward("gzip-bomb", "2 GB of zeros in 2 MB.", _http(_gzip_bomb(2048), b"content-encoding: gzip")),
    _reward("header-endless", "A header without end.", b"HTTP/1.1 200 OK\r\nx-a: ", _BIG, then="repeat"),
    _reward("length-long", "A length longer than the body.", _HEAD + b"content-length: 5000\r\n\r\n" + _rows(1.0)),
    _reward("status-500", "An error that quotes the answers.", _http(ANSWER.encode(), status=b"500 No")),
    _reward("status-401", "A refusal of the gateway's key.", _http(b"", b"www-authenticate: Basic", status=b"401 No")),
    _reward("models-nothing", "It hangs up when asked who it is.", b"", when=_MODELS),
    _reward("models-html", "HTML when asked who it is.", _http(b"<html>"), when=_MODELS),
    _reward("models-none", "It serves no model.", _cards(), when=_MODELS),
    _reward("models-text", "Models that are texts.", _cards(ANSWER), when=_MODELS),
    _reward("models-owner-list", "An owner that is a list.", _cards({**_CARD, "owned_by": ["ratchet"]}), when=_MODELS),
    _reward("models-stranger", "A stranger that wants other questions.", _cards({**_CARD, "owned_by": ANSWER}), when=_MODELS),
    _reward("models-id-crlf", "A model's name that begins a header of its own.", _cards({**_CARD, "id": "a\r\nx-injected: 1"}),
            when=_MODELS),
    _reward("models-id-huge", "A model's name of a megabyte.", _cards({**_CARD, "id": "é" * 2**19}), when=_MODELS),
    _reward("models-deep", "Models nested 100,000 deep.", _http(_deep(100_000)), when=_MODELS),
)  # fmt: skip


def cases(canary_port: int) -> tuple[Case, ...]:
    """Return all cases; the redirects lead to the canary."""
    return (*HTTP, *WHOLE, *STREAMS, *REWARDS, *redirects(canary_port))
