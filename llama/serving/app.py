"""The ASGI application: all dialects' routes on the models of a registry.

app = create_app(ModelRegistry({"tiny": "params/tiny"}))
uvicorn.run(app)
"""

from fastapi import FastAPI

from llama import __version__
from llama.serving import http_errors, openai_chat
from llama.serving.middleware import JsonBodies
from llama.serving.registry import ModelRegistry


def create_app(models: ModelRegistry) -> FastAPI:
    """An application that serves `models`."""
    app = FastAPI(title="Llama", version=__version__, docs_url=None, redoc_url=None)
    http_errors.install(app)
    app.add_middleware(JsonBodies)
    for dialect in (openai_chat,):  # OpenAI's routes exist without /v1 too
        router = dialect.routes(models)
        app.include_router(router, prefix="/v1")
        app.include_router(router, include_in_schema=False)
    return app
