"""JSON responses, encoded by orjson."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with the body as JSON."""
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")
