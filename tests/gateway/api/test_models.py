"""The names of the models that are served."""

from __future__ import annotations

from tests.serving import Serve


async def test_every_name_is_listed_and_served(serve: Serve) -> None:
    served = await serve(api={"models": ("ratchet", "org/alias")})
    listing = (await served.http.get("/v1/models")).json()
    assert ("list", ["ratchet", "org/alias"]) == (listing["object"], [model["id"] for model in listing["data"]])
    for model in listing["data"]:
        assert model == (await served.http.get(f"/v1/models/{model['id']}")).json()
        assert model["id"] == (await served.chat(model=model["id"], best_of=1)).json()["model"]


async def test_an_unknown_name_is_404_and_not_quoted(serve: Serve) -> None:
    served = await serve()
    for name in ("nope", "/", "ratchet/x", "%00", "a" * 5000):
        response = await served.http.get(f"/v1/models/{name}")
        error = response.json()["error"]
        assert (404, "model_not_found") == (response.status_code, error["code"])
        assert "this model does not exist here; GET /v1/models lists what does" == error["message"]


async def test_a_slash_at_the_end_lists_too(serve: Serve) -> None:
    served = await serve()
    answers = [await served.http.get(path) for path in ("/v1/models", "/v1/models/")]
    assert [200, 200] == [answer.status_code for answer in answers]
    assert answers[0].json() == answers[1].json()
