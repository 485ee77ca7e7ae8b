"""All of Ollama's routes."""

from fastapi import APIRouter

from llama.serving import ollama_chat, ollama_embed, ollama_models, ollama_pull
from llama.serving.ollama_fields import ERRORS
from llama.serving.registry import ModelRegistry


def routes(models: ModelRegistry) -> APIRouter:
    """The routes, in Ollama's dialect of errors."""
    router = APIRouter(tags=["Ollama"], responses=ERRORS)
    for part in (ollama_chat, ollama_embed, ollama_models, ollama_pull):
        router.include_router(part.routes(models))
    return router
