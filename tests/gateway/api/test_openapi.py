"""The OpenAPI document states this server's own limits, so that a generated client knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.api.keyfile import new_key
from gateway.api.translate import MAX_STOPS, NEUTRAL
from tests.serving import Serve


async def document_of(serve: Serve, **settings: Any) -> dict[str, Any]:
    document: dict[str, Any] = (await (await serve(**settings)).http.get("/openapi.json")).json()
    return document


async def test_the_document_has_this_servers_limits(serve: Serve) -> None:
    api = {"models": ["one", "two"], "max_messages": 7}
    document = await document_of(serve, api=api, race={"best_of_max": 20})
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert (["one", "two"], 7) == (fields["model"]["enum"], fields["messages"]["maxItems"])
    [header] = document["paths"]["/v1/chat/completions"]["post"]["parameters"]
    assert ("header", False, "X-Best-Of") == (header["in"], header["required"], header["name"])
    assert [20, 20, 20] == [
        schema["maximum"] for schema in (fields["best_of"]["anyOf"][0], fields["n"]["anyOf"][0], header["schema"])
    ]
    assert MAX_STOPS == fields["stop"]["anyOf"][1]["maxItems"]
    assert {name: [*neutral, None] for name, neutral in NEUTRAL.items()} == {
        name: fields[name]["enum"] for name in NEUTRAL
    }


async def test_a_route_that_reads_its_own_body_names_its_schema(serve: Serve) -> None:
    document = await document_of(serve)
    for path, model in (("/v1/chat/completions", "ChatCompletionRequest"), ("/v1/feedback", "FeedbackRequest")):
        body = document["paths"][path]["post"]["requestBody"]
        schema = {"$ref": f"#/components/schemas/{model}"}
        assert {"required": True, "content": {"application/json": {"schema": schema}}} == body
        assert model in document["components"]["schemas"]
    statuses = {"400", "401", "403", "404", "408", "413", "415", "429", "500", "502", "503", "504"}
    assert statuses <= document["paths"]["/v1/chat/completions"]["post"]["responses"].keys()


async def test_a_server_with_keys_documents_their_header(serve: Serve, tmp_path: Path) -> None:
    assert "security" not in await document_of(serve)
    (tmp_path / "keys").write_text(new_key("app")[1])
    document = await document_of(serve, api={"keys_file": tmp_path / "keys"})
    assert {"key": {"type": "http", "scheme": "bearer"}} == document["components"]["securitySchemes"]
    assert [{"key": []}] == document["security"]
    assert [] == document["paths"]["/health/live"]["get"]["security"]
