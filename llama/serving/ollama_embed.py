"""Ollama's embeddings: POST /api/embed, and POST /api/embeddings of older clients.

See `llama.engine.embedding` for what they are. A text that is too long is an error, whether or not
`truncate` allows to cut it.
"""

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llama.errors import ContextLengthError
from llama.serving.answers import Usage, embed
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.ollama_fields import ModelFields, Options
from llama.serving.registry import ModelRegistry
from llama.serving.wire import while_connected


class EmbedFields(ModelFields):
    """The body of POST /api/embed; without a text it loads the model."""

    input: str | list[str] = Field(default_factory=list)
    truncate: bool | None = None
    dimensions: int | None = None
    options: Options | None = None


class EmbeddingsFields(ModelFields):
    """The body of POST /api/embeddings; without a text it loads the model."""

    prompt: str | None = None
    options: Options | None = None


class EmbedAnswer(BaseModel):
    """A vector of length 1 for each text; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(BaseModel):
    """A vector of length 1."""

    embedding: list[float]


def routes(models: ModelRegistry) -> APIRouter:
    """The routes of embeddings."""
    router = APIRouter()

    @router.post("/api/embed", response_model=EmbedAnswer)
    async def embed_texts(body: EmbedFields, request: Request) -> JSONResponse:
        """The embeddings of texts."""
        return JSONResponse(await while_connected(request, _embed(models, body)))

    @router.post("/api/embeddings", response_model=EmbeddingsAnswer)
    async def embed_prompt(body: EmbeddingsFields, request: Request) -> JSONResponse:
        """The embedding of a text."""
        fields = EmbedFields(
            model=body.model,
            keep_alive=body.keep_alive,
            options=body.options,
            input=body.prompt or [],
        )
        answer = await while_connected(request, _embed(models, fields))
        (vector,) = answer["embeddings"] or [[]]
        return JSONResponse({"embedding": vector})

    return router


async def _embed(models: ModelRegistry, body: EmbedFields) -> dict[str, Any]:
    begin = time.monotonic()
    texts = [body.input] if isinstance(body.input, str) else body.input
    texts = [] if texts == [""] else texts
    async with models.use(body.model, body.seconds_alive) as served:
        loaded = time.monotonic()
        size = served.llama.model.params.dim
        if body.dimensions not in (None, size):
            raise HttpError(400, f"dimensions: this model's vectors have {size}, and can't be cut")
        sequences = await embed(served, "input", texts) if texts else []
    limit = body.options.num_ctx if body.options else None
    for i, sequence in enumerate(sequences):
        assert sequence.pool_from is not None
        count = len(sequence.prompt) - sequence.pool_from
        if limit is not None and count > limit:
            raise ContextLengthError(f"input[{i}]", count, limit, f"options.num_ctx is {limit}")
    vectors = [s.embedding.tolist() for s in sequences if s.embedding is not None]
    end = time.monotonic()
    return {
        "model": body.model,
        "embeddings": vectors,
        "total_duration": int((end - begin) * 1e9),
        "load_duration": int((loaded - begin) * 1e9),
        "prompt_eval_count": Usage.of(sequences).prompt_tokens,
    }
