"""Web pages of other origins: which are allowed, and what they may read; over plain HTTP and in a real Chromium."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.api import cors, render
from gateway.api.keyfile import new_key
from gateway.settings import ApiSettings
from tests.gateway.api.test_render import outcome
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Serve, Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = "https://chat.example.com"
CHAT = "/v1/chat/completions"
# The preflight request of OpenAI's JavaScript client.
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-arch,x-stainless-lang,x-best-of",
}


async def test_without_origins_no_page_is_allowed(serve: Serve) -> None:
    served = await serve()
    preflight = await served.http.options(CHAT, headers=PREFLIGHT)
    answer = await served.chat(best_of=1, headers={"origin": PAGE})
    assert (405, 200) == (preflight.status_code, answer.status_code)
    assert not [name for reply in (preflight, answer) for name in reply.headers if name.startswith("access-control")]


async def test_a_page_of_a_listed_origin_may_send_and_read(serve: Serve) -> None:
    served = await serve(api={"cors_origins": ("http://other", PAGE)})
    preflight = await served.http.options(CHAT, headers=PREFLIGHT)
    assert (200, PAGE) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert PREFLIGHT["access-control-request-headers"] == preflight.headers["access-control-allow-headers"]
    for fields in ({"best_of": 2}, {"best_of": 2, "stream": True}, {"best_of": 1, "stream": True}, {"best_of": 0}):
        answer = await served.chat(**fields, headers={"origin": PAGE})
        assert PAGE == answer.headers["access-control-allow-origin"]
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        ours = [name for name in answer.headers if name.startswith(("x-bon-", "x-ratelimit-", "x-request-id", "retry"))]
        assert set() == set(ours) - set(exposed)


def test_a_page_may_read_every_header_that_describes_the_race() -> None:
    described = render.headers(outcome(n_returned=3))
    assert "x-bon-shortfall" in described
    assert set() == set(described) - set(cors.EXPOSED)


@pytest.mark.parametrize(
    "origin",
    [
        "https://chat.example.com.evil",
        "http://chat.example.com",
        "https://chat.example.com:8443",
        "null",
        "https://evil",
    ],
)
async def test_a_page_of_any_other_origin_is_not_allowed(serve: Serve, origin: str) -> None:
    served = await serve(api={"cors_origins": (PAGE,)})
    preflight = await served.http.options(CHAT, headers={**PREFLIGHT, "origin": origin})
    answer = await served.chat(best_of=1, headers={"origin": origin})
    assert (400, 200) == (preflight.status_code, answer.status_code)
    for reply in (preflight, answer):
        assert "access-control-allow-origin" not in reply.headers


async def test_a_preflight_needs_no_key_and_its_request_does(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(new_key("one")[1])
    served = await serve(api={"keys_file": tmp_path / "keys", "cors_origins": ("*",)})
    assert 200 == (await served.http.options(CHAT, headers=PREFLIGHT)).status_code
    answer = await served.chat(headers={"origin": PAGE})
    assert (401, "*") == (answer.status_code, answer.headers["access-control-allow-origin"])


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", ()),
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, http://127.0.0.1:3000", ("https://a.example", "http://127.0.0.1:3000")),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("https://a.example:80", ("https://a.example:80",)),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
        ("https://a.example/", None),
        ("https://a.example/path", None),
        ("https://A.example", None),
        ("a.example", None),
        ("https://", None),
        ("null", None),
        ("https://*.example", None),
        ("https://a.example:443", None),
        ("http://[::1]:80", None),
        ("https://user@a.example", None),
        ("*", None),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(value: str, origins: tuple[str, ...] | None) -> None:
    if origins is None:
        with pytest.raises(ValidationError, match=r"an origin is|needs keys_file"):
            ApiSettings.model_validate({"cors_origins": value})
    else:
        assert origins == ApiSettings.model_validate({"cors_origins": value}).cors_origins


# A script that calls the gateway as a page may, and sends the result to its own server.
SCRIPT = """<!doctype html><title>page</title><script>
(async () => {
  const [gateway, key] = %s, found = [];
  const json = {authorization: 'Bearer ' + key, 'content-type': 'application/json', 'x-stainless-lang': 'js'};
  const body = more => JSON.stringify({model: 'ratchet', messages: %s, ...more});
  const calls = [
    ['/v1/models', {headers: {authorization: 'Bearer ' + key}}],
    ['/v1/models', {}],
    ['/v1/chat/completions', {method: 'POST', headers: json, body: body({best_of: 2})}],
    ['/v1/chat/completions', {method: 'POST', headers: json, body: body({best_of: 2, stream: true})}],
    ['/v1/chat/completions', {method: 'POST', headers: json, body: body({best_of: 1, stream: true})}],
    ['/chat/completions', {method: 'POST', headers: json, body: body({})}],
  ];
  for (const [path, options] of calls) {
    try {
      const answer = await fetch(gateway + path, options);
      let text = '', decoder = new TextDecoder();
      for (let reader = answer.body.getReader();;) {
        const {done, value} = await reader.read();
        if (done) break;
        text += decoder.decode(value, {stream: true});
      }
      const {headers} = answer;
      found.push([answer.status, text.includes('[DONE]'), headers.get('x-bon-n'), !!headers.get('x-request-id')]);
    } catch (error) { found.push(String(error)); }
  }
  await fetch('/found', {method: 'POST', body: JSON.stringify(found)});
})();
</script>"""


@asynccontextmanager
async def page_server() -> AsyncIterator[tuple[uvicorn.Server, dict[str, str], asyncio.Queue[Any]]]:
    """A web site of another origin: its server, its page (by path), and the page's result."""
    pages: dict[str, str] = {}
    found: asyncio.Queue[Any] = asyncio.Queue()

    async def page(request: Request) -> Response:
        return HTMLResponse(pages.get(request.url.path, ""))

    async def take(request: Request) -> Response:
        found.put_nowait(orjson.loads(await request.body()))
        return Response()

    app = Starlette(routes=[Route("/found", take, methods=["POST"]), Route("/{path:path}", page)])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_config=None))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server, pages, found
    finally:
        server.should_exit = True
        await running


async def found_by_chromium(folder: Path, url: str, found: asyncio.Queue[Any]) -> Any:
    """Open a page in a new browser, and return the page's result."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *options, "--remote-debugging-port=0", url, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(120):
            return await found.get()
    finally:
        browser.terminate()
        await browser.wait()


def script_for(served: Served, key: str) -> str:
    return SCRIPT % (orjson.dumps([served.url, key]).decode(), orjson.dumps(MESSAGES).decode())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
async def test_a_real_browser_allows_a_listed_page_and_no_other(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    key, line = new_key("page")
    (tmp_path / "keys").write_text(line)
    async with page_server() as (site, pages, found):
        port = site.servers[0].sockets[0].getsockname()[1]
        served = await serve(
            api={"keys_file": tmp_path / "keys", "cors_origins": (f"http://127.0.0.1:{port}",)}, policy={"n": 2}
        )
        pages["/"] = script_for(served, key)
        expected = [
            [200, False, None, True],
            [401, False, None, True],
            [200, False, "2", True],
            [200, True, "2", True],
            [200, True, "1", True],
            [404, False, None, True],
        ]
        assert expected == await found_by_chromium(tmp_path, f"http://127.0.0.1:{port}/", found)
        # The same page under another name of the same machine is another origin.
        assert ["TypeError: Failed to fetch"] * 6 == await found_by_chromium(
            tmp_path, f"http://localhost:{port}/", found
        )
