"""Where other gateways are installed for a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.peers.environment import python_of


async def test_what_is_installed_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker names the version: another version makes the environment anew."""
    monkeypatch.setattr("loadtests.peers.environment.PEERS_DIR", tmp_path)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "peer==1.0").touch()
    assert tmp_path / "peer" / "bin" / "python" == await python_of("peer", "peer==1.0")
    assert ["peer==1.0"] == [path.name for path in (tmp_path / "peer").iterdir()]
