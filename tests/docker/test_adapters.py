"""Loading adapters on TGI and llama.cpp in containers: serve.sh and load.py, with a fake server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stubs.tgi import TgiStub

_SCRIPTS = Path(__file__).parents[2] / "docker" / "adapters"
OLD, NEW = "rft-2026-11-01-0123abcd", "rft-2026-11-02-4567cdef"

# Says how it was started, and ends at SIGTERM as servers do.
_SERVER = """
import os, signal, sys
with open(os.environ["STARTS"], "a") as starts:
    print(os.environ.get("LORA_ADAPTERS", "-"), *sys.argv[1:], file=starts)
if "broken" in sys.argv: sys.exit(9)
if "choosy" in sys.argv and "4567cdef" in os.environ.get("LORA_ADAPTERS", ""):
    sys.exit(9)
signal.sigwait({signal.SIGTERM})
"""

Serve = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start serve.sh as a replica on this machine."""
    for name in (OLD, NEW):
        (tmp_path / name).mkdir()
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / f"{OLD}.gguf").touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "ADAPTERS": str(tmp_path),
            "REPLICA": "localhost",
            "POLL_S": "0.05",
            "STARTS": str(tmp_path / "starts"),
        }
        command = ["/bin/sh", str(_SCRIPTS / "serve.sh"), kind, sys.executable, "-c", _SERVER, *arguments]
        started.append(subprocess.Popen(command, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def want(folder: Path, *names: str) -> None:
    (folder / "wanted").mkdir(exist_ok=True)
    (folder / "draft").write_text("".join(f"{name}\n" for name in names))
    os.replace(folder / "draft", folder / "wanted" / "localhost")


def starts(folder: Path, count: int) -> list[str]:
    """Return the first ``count`` starts of the server; wait for them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = (folder / "starts").read_text().splitlines() if (folder / "starts").exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.02)
    raise TimeoutError("the server was not started")


def load(folder: Path, url: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(_SCRIPTS / "load.py"), url, NEW, "--folder", str(folder), *options])


def test_tgi_restarts_with_the_wanted_adapters(serve: Serve, tmp_path: Path) -> None:
    serve("tgi", "--port", "80")
    assert ["- --port 80"] == starts(tmp_path, 1)
    want(tmp_path, OLD, NEW)
    assert f"{OLD}={tmp_path}/{OLD},{NEW}={tmp_path}/{NEW} --port 80" == starts(tmp_path, 2)[1]


def test_llamacpp_gets_files_and_applies_none_by_default(serve: Serve, tmp_path: Path) -> None:
    want(tmp_path, OLD)
    serve("llamacpp", "--port", "80")
    assert [f"- --port 80 --lora {tmp_path}/gguf/{OLD}.gguf --lora-init-without-apply"] == starts(tmp_path, 1)


@pytest.mark.parametrize("name", ["rft-2026-11-03-missing0", "../secret", "rft-;reboot", "base"])
def test_an_invalid_name_does_not_keep_others_from_being_served(serve: Serve, tmp_path: Path, name: str) -> None:
    want(tmp_path, name, OLD)
    serve("tgi")
    assert [f"{OLD}={tmp_path}/{OLD}"] == starts(tmp_path, 1)


def test_a_server_that_ends_by_itself_ends_the_container_with_its_status(serve: Serve) -> None:
    assert 9 == serve("tgi", "broken").wait(60)


def test_sigterm_ends_server_and_script(serve: Serve, tmp_path: Path) -> None:
    process = serve("tgi")
    starts(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    assert 143 == process.wait(60)


async def test_load_ends_once_the_replica_serves_the_adapter_and_is_healthy(serve: Serve, tmp_path: Path) -> None:
    want(tmp_path, OLD)
    serve("tgi")
    async with TgiStub() as well:
        loading = load(tmp_path, well.url.replace("127.0.0.1", "localhost"))
        code = await _ended(loading)
    assert 0 == code
    assert f"{OLD}={tmp_path}/{OLD},{NEW}={tmp_path}/{NEW}" == starts(tmp_path, 2)[1].rstrip()


def test_an_unhealthy_replica_gets_its_adapters_back(serve: Serve, tmp_path: Path) -> None:
    want(tmp_path, OLD)
    serve("tgi")
    starts(tmp_path, 1)
    assert 1 == load(tmp_path, "http://localhost:9", "--timeout-s", "1").wait(60)
    assert f"{OLD}\n" == (tmp_path / "wanted" / "localhost").read_text()


def test_a_server_that_dies_of_an_adapter_gets_its_adapters_back_at_once(serve: Serve, tmp_path: Path) -> None:
    """Long before load's time-out, so that the restarted container starts without that adapter."""
    want(tmp_path, OLD)
    process = serve("tgi", "choosy")
    starts(tmp_path, 1)
    assert 1 == load(tmp_path, "http://localhost:9", "--timeout-s", "3600").wait(60)
    assert 9 == process.wait(60)
    assert f"{OLD}\n" == (tmp_path / "wanted" / "localhost").read_text()


def test_only_the_newest_adapters_stay(tmp_path: Path) -> None:
    """Each costs the server memory, and no rollback returns to an older one."""
    want(tmp_path, "rft-a", "rft-b", NEW, "rft-c")
    loading = load(tmp_path, "http://localhost:9", "--keep", "3", "--timeout-s", "60")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (tmp_path / "wanted" / "localhost").read_text().split()[-1] != NEW:
        time.sleep(0.02)
    loading.kill()
    loading.wait()
    assert ["rft-b", "rft-c", NEW] == (tmp_path / "wanted" / "localhost").read_text().split()


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Return its exit status without blocking the stub."""
    return await asyncio.to_thread(process.wait, 60)
