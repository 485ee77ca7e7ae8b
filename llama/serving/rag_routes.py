"""Indexes of documents over HTTP: POST /v1/rag/add, /remove, /search, /ask and /explain, GET
/v1/rag/documents.

Documents come as texts by their names: a client can't make the server read its files. Where there
is one index, a request need not name it.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llama.retrieval.index import Index
from llama.retrieval.passage_scores import Rerank
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.rag_answers import RagAnswer, ServedIndex
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, while_connected


class OfIndex(StrictModel):
    """What all bodies have."""

    index: str | None = None


class NamedText(StrictModel):
    """A document."""

    name: str
    text: str


class AddFields(OfIndex):
    """The body of POST /v1/rag/add."""

    documents: list[NamedText] = Field(min_length=1)


class RemoveFields(OfIndex):
    """The body of POST /v1/rag/remove."""

    names: list[str] = Field(min_length=1)


class SearchFields(OfIndex):
    """The body of POST /v1/rag/search."""

    question: str
    k: int = Field(5, ge=1)
    rerank: Rerank | None = None


class ExplainFields(SearchFields):
    """The body of POST /v1/rag/explain."""

    max_tokens: int | None = Field(None, ge=1)


class AskFields(ExplainFields):
    """The body of POST /v1/rag/ask."""

    temperature: float = Field(0.0, ge=0)
    seed: int | None = None


class AddedBody(BaseModel):
    """Names of documents that were new, others before, and the same."""

    added: list[str]
    updated: list[str]
    unchanged: list[str]


class RemovedBody(BaseModel):
    """Names of documents that are gone."""

    removed: list[str]


class DocumentBody(BaseModel):
    """A document of an index."""

    source: str
    digest: str
    num_chunks: int


class DocumentsBody(BaseModel):
    """All of them."""

    documents: list[DocumentBody]


class HitBody(BaseModel):
    """A passage, and where it is; `start` and `end` are characters of the document's text."""

    text: str
    source: str
    page: int | None
    heading: str
    start: int
    end: int
    score: float


class HitsBody(BaseModel):
    """Passages, the best first."""

    hits: list[HitBody]


class SupportBody(BaseModel):
    """What a passage contributes to a sentence, in nats."""

    hit: HitBody
    drop: float
    alone: float


class SentenceBody(BaseModel):
    """A sentence of the answer; nothing supports it if it has no `supports`."""

    text: str
    supports: list[SupportBody]
    contributions: list[SupportBody]


class AnswerBody(BaseModel):
    """An answer with what supports each of its sentences."""

    question: str
    text: str
    is_found: bool
    sentences: list[SentenceBody]
    hits: list[HitBody]
    left_out: list[HitBody]
    finish_reason: str | None
    sources: list[HitBody]


class StageBody(BaseModel):
    """The candidates of a step of a search, the best first."""

    name: str
    hits: list[HitBody]


class ExplanationBody(BaseModel):
    """How a question is answered: the full-text query, each step of the search, the prompt."""

    question: str
    query: str
    stages: list[StageBody]
    prompt: str
    prompt_tokens: int
    hits: list[HitBody]
    left_out: list[HitBody]


def routes(models: ModelRegistry, model: str, indexes: Mapping[str, Index]) -> APIRouter:
    """The routes of `indexes`, which the model reads; each is also a model's name, rag:NAME."""
    router = APIRouter(prefix="/v1/rag", tags=["Documents"])
    served = {name: ServedIndex(models, model, index) for name, index in indexes.items()}
    for name, index in served.items():
        models.chats[f"rag:{name}"] = functools.partial(RagAnswer, index)

    def named(name: str | None) -> ServedIndex:
        if name is None and len(served) == 1:
            return next(iter(served.values()))
        if name not in served:
            names = ", ".join(served)
            text = f"there is no index {name!r:.100}; there are {names}"
            raise HttpError(404, text, param="index", code="index_not_found")
        return served[name]

    @router.post("/add", response_model=AddedBody)
    async def add(body: AddFields, request: Request) -> JSONResponse:
        """Adds documents, or replaces those of the same names."""
        texts = {document.name: document.text for document in body.documents}
        if len(texts) < len(body.documents):
            raise HttpError(400, "documents: two have one name", param="documents")
        work = named(body.index).use(lambda index: index.add(texts))
        added = await while_connected(request, work)
        names = ("added", "updated", "unchanged")
        return JSONResponse({name: list(getattr(added, name)) for name in names})

    @router.post("/remove", response_model=RemovedBody)
    async def remove(body: RemoveFields, request: Request) -> JSONResponse:
        """Removes documents, all that are named or none."""
        work = named(body.index).use(lambda index: index.remove(body.names))
        return JSONResponse({"removed": await while_connected(request, work)})

    @router.get("/documents", response_model=DocumentsBody)
    async def documents(request: Request, index: str | None = None) -> JSONResponse:
        """Lists the documents of an index."""
        work = named(index).use(lambda opened: opened.documents())
        found = await while_connected(request, work)
        return JSONResponse({"documents": [asdict(document) for document in found]})

    @router.post("/search", response_model=HitsBody)
    async def search(body: SearchFields, request: Request) -> JSONResponse:
        """The passages that fit a question best."""
        work = named(body.index).use(lambda i: i.search(body.question, body.k, body.rerank))
        hits = await while_connected(request, work)
        return JSONResponse({"hits": [asdict(hit) for hit in hits]})

    @router.post("/ask", response_model=AnswerBody)
    async def ask(body: AskFields, request: Request) -> JSONResponse:
        """An answer from the documents, each sentence with what supports it."""
        settings: dict[str, Any] = {"temperature": body.temperature, "seed": body.seed}
        work = named(body.index).use(
            lambda index: index.answer(
                body.question, body.k, body.rerank, max_gen_len=body.max_tokens, **settings
            )
        )
        answer = await while_connected(request, work)
        sources = [asdict(hit) for hit in answer.sources]
        return JSONResponse({**asdict(answer), "sources": sources})

    @router.post("/explain", response_model=ExplanationBody)
    async def explain(body: ExplainFields, request: Request) -> JSONResponse:
        """How a question would be answered: the candidates with their scores, the exact prompt."""
        work = named(body.index).use(
            lambda index: index.explain(
                body.question, body.k, body.rerank, max_gen_len=body.max_tokens
            )
        )
        return JSONResponse(asdict(await while_connected(request, work)))

    return router
