"""``GET /v1/models``: the names of the models that are served."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Header

from gateway.api.auth import ApiKeys
from gateway.api.openapi import ERRORS
from gateway.api.schemas import Model, ModelList
from gateway.errors import ModelNotFound
from gateway.settings import ApiSettings

Authorization = Annotated[str | None, Header(include_in_schema=False)]


def routes(settings: ApiSettings, keys: ApiKeys) -> APIRouter:
    created = int(time.time())
    models = {name: Model(id=name, created=created, owned_by="ratchet") for name in settings.models}
    router = APIRouter(tags=["models"])

    @router.get("/v1/models/", include_in_schema=False)
    @router.head("/v1/models/", include_in_schema=False)
    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models", summary="All models", responses={401: ERRORS[401]})
    async def list_models(authorization: Authorization = None) -> ModelList:
        keys.authenticate(authorization)
        return ModelList(data=list(models.values()))

    @router.head("/v1/models/{model_id:path}", include_in_schema=False)
    @router.get("/v1/models/{model_id:path}", summary="One model", responses={401: ERRORS[401], 404: ERRORS[404]})
    async def get_model(model_id: str, authorization: Authorization = None) -> Model:
        keys.authenticate(authorization)
        if model_id not in models:
            raise ModelNotFound("this model does not exist here; GET /v1/models lists what does")
        return models[model_id]

    return router
