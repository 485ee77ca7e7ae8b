"""The ASGI application: all dialects' routes on the models of a registry, and the web page.

app = create_app(ModelRegistry({"tiny": "params/tiny"}))
uvicorn.run(app)
"""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI

from llama import __version__
from llama.errors import InputError
from llama.retrieval.index import Index
from llama.serving import (
    anthropic_messages,
    http_errors,
    llama_server,
    middleware,
    ollama_routes,
    openai_routes,
    rag_routes,
    web_page,
)
from llama.serving.lifecycle import Lifecycle
from llama.serving.openai_fields import ERRORS
from llama.serving.registry import ModelRegistry

MAX_BODY_SIZE = 2**25  # bytes


def create_app(
    models: ModelRegistry,
    lifecycle: Lifecycle | None = None,
    *,
    api_keys: Sequence[str] = (),
    cors: Sequence[str] = (),
    max_body_size: int = MAX_BODY_SIZE,
    ping_seconds: float = 0,
    indexes: Mapping[str, Index] | None = None,
) -> FastAPI:
    """An application that serves `models`.

    lifecycle: says while the server loads or ends that it takes no requests.
    api_keys: one of them has to come with every request, if there are any.
    cors: origins of web pages that may call the server, besides those of this machine; * is all.
    max_body_size: bytes of a request.
    ping_seconds: a stream that is silent for so long gets a comment; 0 for never.
    indexes: documents by names that the one model of `models` answers from, under /v1/rag and as
        the model rag:NAME.
    """
    lifecycle = lifecycle or Lifecycle()
    app = FastAPI(title="Llama", version=__version__, docs_url=None, redoc_url=None)
    http_errors.install(app)
    middleware.install(app, lifecycle, api_keys, cors, max_body_size)
    app.state.ping_seconds = ping_seconds
    app.include_router(web_page.routes())
    app.include_router(openai_routes.routes(models))
    app.include_router(llama_server.routes(models, lifecycle), responses=ERRORS)
    app.include_router(anthropic_messages.routes(models), prefix="/v1")
    app.include_router(ollama_routes.routes(models))
    if indexes:
        if models.only_model is None:
            raise InputError("indexes need one model: name it, as in llama serve MODEL")
        router = rag_routes.routes(models, models.only_model, indexes)
        app.include_router(router, responses=ERRORS)
    return app
