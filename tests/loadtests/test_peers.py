"""Environments for other gateways, and the measuring of servers and libraries."""

from __future__ import annotations

import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, as_library, over_http, serving
from tests.stubs.knobs import Knobs
from tests.stubs.process import StubProcess
from tests.stubs.tgi import TgiStub


async def test_what_is_installed_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker names the version: another version makes the environment anew."""
    monkeypatch.setattr("loadtests.peers.environment.PEERS_DIR", tmp_path)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "peer==1.0").touch()
    assert tmp_path / "peer" / "bin" / "python" == await python_of("peer", "peer==1.0")
    assert ["peer==1.0"] == [path.name for path in (tmp_path / "peer").iterdir()]


async def test_a_package_alone_is_part_of_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package installed without its dependencies is in the marker as well."""
    monkeypatch.setattr("loadtests.peers.environment.PEERS_DIR", tmp_path)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "peer==1.0 flask").touch()
    assert tmp_path / "peer" / "bin" / "python" == await python_of("peer", "flask", alone="peer==1.0")


async def test_a_server_gives_a_result_for_each_concurrency() -> None:
    """A server with OpenAI's protocol is measured at each concurrency in turn, with its CPU for each request."""
    async with StubProcess() as stub:
        assert stub.pid is not None
        race = Race(stub.url, n=2, concurrencies=(1, 3), seconds=0.2)
        results = [result async for result in over_http(stub.url, stub.pid, race)]
    assert [1, 3] == [measured.concurrency for measured, _ in results]
    assert all(measured.requests > 1 and cpu_ms > 0 for measured, cpu_ms in results)


async def test_an_answer_that_is_an_error_ends_the_measurement() -> None:
    """Errors come quickly: they must never pass for a fast gateway."""
    async with TgiStub(Knobs(max_concurrent_requests=0)) as stub:
        results = over_http(stub.url, 1, Race(stub.url, 2, (1,), 0.2))
        async with aclosing(results):
            with pytest.raises(RuntimeError, match="answered 429"):
                await anext(results)


async def test_a_server_that_does_not_start_says_why() -> None:
    """The end of its log is in the error."""
    command = (sys.executable, "-c", "raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        async with serving(command, 1, {}):
            pass


async def test_a_library_is_measured_by_its_own_interpreter() -> None:
    """Its results come as lines of JSON, one for each concurrency."""
    race = Race("http://127.0.0.1:1", n=2, concurrencies=(1, 4), seconds=0.2)
    async with aclosing(as_library(Path(sys.executable), "tests.loadtests.sleeping_library", race)) as results:
        found = [(measured.concurrency, measured.p50_ms >= 10) async for measured, _ in results]
    assert [(1, True), (4, True)] == found


async def test_a_library_that_is_not_there_is_an_error() -> None:
    """The interpreter's message is in the error."""
    results = as_library(Path(sys.executable), "loadtests.peers.its_hub_client", Race("", 1, (1,), 0.1))
    async with aclosing(results):
        with pytest.raises(RuntimeError, match="its_hub"):
            await anext(results)
