"""The ASGI application: all dialects' routes on the models of a registry.

app = create_app(ModelRegistry({"tiny": "params/tiny"}))
uvicorn.run(app)
"""

from fastapi import FastAPI

from llama import __version__
from llama.serving import (
    http_errors,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    rerank,
)
from llama.serving.middleware import JsonBodies
from llama.serving.openai_fields import ERRORS
from llama.serving.registry import ModelRegistry


def create_app(models: ModelRegistry) -> FastAPI:
    """An application that serves `models`."""
    app = FastAPI(title="Llama", version=__version__, docs_url=None, redoc_url=None)
    http_errors.install(app)
    app.add_middleware(JsonBodies)
    for part in (openai_models, openai_chat, openai_completions, openai_embeddings, rerank):
        router = part.routes(models)
        app.include_router(router, prefix="/v1", responses=ERRORS)
        app.include_router(router, include_in_schema=False)  # OpenAI's exist without /v1 too
        if part is rerank:  # Cohere's newer client
            app.include_router(router, prefix="/v2", include_in_schema=False)
    return app
