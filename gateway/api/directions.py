"""Directions for callers who use a wrong path: ``GET /``, ``GET /v1``, and the message of a 404."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from gateway.api.json_response import json_response

BASE = "/v1"
_BASE_URL = f"the base URL of a client ends with {BASE}"


def api_routes(app: FastAPI) -> dict[str, str]:
    """Return the API's own routes, path to method, as its OpenAPI document lists them."""
    return {
        path: next(iter(operations)).upper()
        for path, operations in app.openapi()["paths"].items()
        if path.startswith(f"{BASE}/")
    }


def not_found(app: FastAPI, path: str) -> str:
    """Return the message of a 404: the route that may be meant, or all routes. It repeats nothing of the path."""
    routes = api_routes(app)
    requested = "/" + "/".join(part for part in path.split("/") if part)
    meant = next((known for known in routes if requested.endswith(known.removeprefix(BASE))), None)
    if meant is not None:
        return f"not found: did you mean {routes[meant]} {meant}? ({_BASE_URL})"
    listed = ", ".join(f"{method} {known}" for known, method in routes.items())
    return f"not found: this API has {listed}; {_BASE_URL}"


def routes(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    @router.head("/")
    @router.get(BASE)
    @router.head(BASE)
    @router.get(f"{BASE}/")
    @router.head(f"{BASE}/")
    async def root() -> Response:
        listed = [f"{method} {path}" for path, method in api_routes(app).items()]
        return json_response({"name": app.title, "message": _BASE_URL, "routes": listed})

    return router
