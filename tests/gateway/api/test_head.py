"""HEAD of the routes that only operators may read."""

from __future__ import annotations

from pathlib import Path

from gateway.api.keyfile import new_key
from tests.serving import Serve


async def test_an_operators_head_is_answered_and_one_without_a_key_is_refused(serve: Serve, tmp_path: Path) -> None:
    key, line = new_key("operator", scopes="admin")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys", "operators": "admin"})
    for path in ("/metrics", "/openapi.json"):
        answer = await served.http.head(path, headers={"Authorization": f"Bearer {key}"})
        assert (path, 200, b"") == (path, answer.status_code, answer.content)
        assert 401 == (await served.http.head(path)).status_code
