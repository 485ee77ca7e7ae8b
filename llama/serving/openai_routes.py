"""All of OpenAI's routes, and reranking: under /v1, and as some clients call them without it."""

from fastapi import APIRouter

from llama.serving import (
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    openai_responses,
    rerank,
)
from llama.serving.openai_fields import ERRORS
from llama.serving.registry import ModelRegistry


def routes(models: ModelRegistry) -> APIRouter:
    """The routes, in OpenAI's dialect of errors."""
    router = APIRouter(responses=ERRORS)
    for part in (
        openai_models,
        openai_chat,
        openai_completions,
        openai_responses,
        openai_embeddings,
        rerank,
    ):
        routes = part.routes(models)
        router.include_router(routes, prefix="/v1")
        router.include_router(routes, include_in_schema=False)
    # Cohere's newer client
    router.include_router(rerank.routes(models), prefix="/v2", include_in_schema=False)
    return router
