"""`llama serve`: the application of `app` under uvicorn."""

from pathlib import Path

import uvicorn

from llama.serving.app import create_app
from llama.serving.registry import ModelRegistry


def serve(
    model: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
) -> None:
    """Serves a model over HTTP, to OpenAI, Anthropic and Ollama clients.

    model: a checkpoint's folder.
    host: the address to listen on.
    port: the port to listen on; 0 lets the system choose.
    name: what clients call the model; its folder's name if not given.
    """
    registry = ModelRegistry({name or Path(model).resolve().name: model}, keep_alive=-1)
    app = create_app(registry)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="off")
    uvicorn.Server(config).run()
