"""The official JavaScript client: its tests, in openai.test.mjs, run by node against a gateway started here."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from gateway.api.keyfile import new_key
from tests.serving import Serve

HERE = Path(__file__).parent


async def test_the_javascript_client_works(serve: Serve, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules" / "openai").is_dir():
        missing = "node and the client's packages are needed; `make test` installs the packages by `npm ci`"
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)
    key, line = new_key("javascript")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys"}, race={"queue_timeout_s": 0.5})
    environment = {
        **os.environ,
        "GATEWAY_URL": served.url,
        "GATEWAY_KEY": key,
        "BACKEND_URL": served.tgi.url,
        "NODE_OPTIONS": "",
    }
    process = await asyncio.create_subprocess_exec(
        *(node, "--test", "--test-reporter=spec", "--test-timeout=30000", "openai.test.mjs"),
        cwd=HERE,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert 0 == process.returncode, output
    assert "pass 0" not in output, output
    assert "skipped 0" in output, output
