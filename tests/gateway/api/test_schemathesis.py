"""Run schemathesis against the OpenAPI document of a gateway: no 5xx, and no answer that breaks the document."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import hypothesis

from gateway.api.keyfile import new_key
from tests.redis_server import RedisServer
from tests.serving import Serve

HERE = Path(__file__).parent
EXAMPLES = hypothesis.settings().max_examples // 10
"""Of each operation; make fuzz tries thirty times as many."""


async def test_the_gateway_keeps_what_its_openapi_document_promises(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    key, line = new_key("schemathesis")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys"})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"),
        *(f"{served.url}/openapi.json", "--header", f"Authorization: Bearer {key}"),
        *("--seed", "1", "--max-examples", str(EXAMPLES), "--no-shrink", "--no-color"),
        cwd=HERE.parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert 0 == process.returncode, output
    assert "Selected: 7/7" in output, output
    assert 200 == (await served.chat(headers={"Authorization": f"Bearer {key}"})).status_code
