"""OpenAI's embeddings: POST /v1/embeddings.

https://platform.openai.com/docs/api-reference/embeddings. See `llama.engine.embedding` for what
they are.
"""

import base64
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from llama.engine.request import Sequence
from llama.serving.answers import embed
from llama.serving.json_output import JSONResponse
from llama.serving.openai_fields import PromptUsage, prompt_usage, wrong
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, while_connected


class EmbeddingRequest(StrictModel):
    """The body of POST /v1/embeddings.

    Token ids are declared to be refused with a reason: clients send those of another tokenizer.
    """

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None  # has no effect

    def texts(self) -> list[str]:
        """The texts. Raises HttpError for token ids, and where there is none."""
        texts: Any = [self.input] if isinstance(self.input, str) else self.input
        if not texts:
            raise wrong("input", "it is empty; give at least one text")
        if not isinstance(texts[0], str):
            raise wrong(
                "input",
                "token ids are not accepted, since they may be another tokenizer's: send text. "
                "LangChain does with OpenAIEmbeddings(check_embedding_ctx_length=False)",
            )
        for i, text in enumerate(texts):
            if not text:
                raise wrong(f"input.{i}", "it is empty; it needs at least one character")
        return texts


class Embedding(BaseModel):
    """A vector of length 1: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The vector of each text, in their order. A text is read twice (`llama.engine.embedding`)."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: PromptUsage


def routes(models: ModelRegistry) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/embeddings", response_model=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, request: Request) -> JSONResponse:
        """The embeddings of texts."""
        return JSONResponse(await while_connected(request, _embeddings(models, body)))

    return router


async def _embeddings(models: ModelRegistry, body: EmbeddingRequest) -> dict[str, Any]:
    texts = body.texts()
    async with models.use(body.model) as served:
        size = served.llama.model.params.dim
        if body.dimensions not in (None, size):
            raise wrong("dimensions", f"this model's vectors have {size}, and can't be cut")
        sequences = await embed(served, "input", texts)
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(sequence, as_base64)}
        for i, sequence in enumerate(sequences)
    ]
    usage = prompt_usage(sequences)
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _vector(sequence: Sequence, as_base64: bool) -> list[float] | str:
    assert sequence.embedding is not None
    if as_base64:
        return base64.b64encode(sequence.embedding.numpy().astype("<f4").tobytes()).decode()
    return sequence.embedding.tolist()
