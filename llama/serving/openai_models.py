"""OpenAI's list of models: GET /v1/models and /v1/models/{id}.

Adapters are models of their own. A model that is loaded says how many tokens fit into its context.
"""

import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llama.serving.json_output import JSONResponse
from llama.serving.registry import ModelRegistry


class ModelCard(BaseModel):
    """A model or an adapter; `max_model_len` as in vLLM's answers, if it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


def routes(models: ModelRegistry) -> APIRouter:
    """The routes of models."""
    router = APIRouter(tags=["OpenAI"])

    started = int(time.time())

    def card(name: str) -> dict[str, Any]:
        if models.chat(name) is not None:
            return {"id": name, "object": "model", "created": started, "owned_by": "llama"}
        length = models.max_model_len(name)  # an error for a name that nothing has
        created = models.names.get(name) or models.names[name.removesuffix(":latest")]
        fields = {"id": name, "object": "model", "created": created, "owned_by": "llama"}
        return fields if length is None else {**fields, "max_model_len": length}

    @router.get("/models", response_model=ModelList)
    async def list_models() -> JSONResponse:
        """Every model that this server has."""
        names = [*models.names, *models.chats]
        return JSONResponse({"object": "list", "data": [card(name) for name in names]})

    @router.get("/models/{name:path}", response_model=ModelCard)
    async def show_model(name: str) -> JSONResponse:
        """One model; its name may hold slashes."""
        return JSONResponse(card(name))

    return router
