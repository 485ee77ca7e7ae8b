"""Cohere's and Jina's reranking: POST /v1/rerank and /v2/rerank.

https://docs.cohere.com/reference/rerank, https://jina.ai/reranker. See `llama.engine.reranking` for
what a `relevance_score` is.
"""

import asyncio
import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llama.engine.request import Sequence
from llama.engine.reranking import query_likelihood, query_likelihood_sequences
from llama.serving.answers import finish
from llama.serving.json_output import JSONResponse
from llama.serving.openai_fields import PromptUsage, prompt_usage, wrong
from llama.serving.registry import ModelRegistry, ServedModel
from llama.serving.wire import StrictModel, while_connected


class DocumentObject(StrictModel):
    """A document."""

    text: str


class RerankRequest(StrictModel):
    """The body of POST /v1/rerank."""

    model: str
    query: str
    documents: list[str | DocumentObject] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None
    # A document that is too long is an error; none is cut.
    max_tokens_per_doc: None = None
    max_chunks_per_doc: None = None
    rank_fields: None = None

    def texts(self) -> list[str]:
        """The documents."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class RankedDocument(BaseModel):
    """A document's number in the request, and its relevance, from 0 to 1."""

    index: int
    relevance_score: float
    document: DocumentObject | None = None


class Ranking(BaseModel):
    """The `top_n` most relevant documents, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: PromptUsage


def routes(models: ModelRegistry) -> APIRouter:
    """The route of reranking."""
    router = APIRouter(tags=["Cohere and Jina"])

    @router.post("/rerank", response_model=Ranking)
    async def rerank(body: RerankRequest, request: Request) -> JSONResponse:
        """Sorts documents by how relevant they are to a query."""
        return JSONResponse(await while_connected(request, _rank(models, body)))

    return router


async def _rank(models: ModelRegistry, body: RerankRequest) -> dict[str, Any]:
    if not body.query:
        raise wrong("query", "it is empty; it needs at least one character")
    texts = body.texts()
    async with models.use(body.model) as served:
        sequences = await finish(served, await asyncio.to_thread(_sequences, served, body))
    results: list[dict[str, Any]] = [
        {"index": i, "relevance_score": query_likelihood(sequence)}
        for i, sequence in enumerate(sequences)
    ]
    if body.return_documents:
        for result, text in zip(results, texts, strict=True):
            result["document"] = {"text": text}
    results.sort(key=lambda result: -result["relevance_score"])
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": body.model,
        "results": results[: body.top_n],
        "usage": prompt_usage(sequences),
    }


def _sequences(served: ServedModel, body: RerankRequest) -> list[Sequence]:
    llama = served.llama
    sequences = query_likelihood_sequences(
        llama.tokenizer, body.query, body.texts(), adapter=served.adapter
    )
    for i, sequence in enumerate(sequences):
        llama.engine.check(sequence, f"documents[{i}], with the query,")
    return sequences
