"""llama-server's routes that are of use beside the other dialects, and the metrics.

https://github.com/ggml-org/llama.cpp/tree/master/tools/server: health, metrics, tokenize,
detokenize, apply-template, props.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from llama import __version__
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.lifecycle import Lifecycle
from llama.serving.openai_chat import ChatCompletionRequest, ChatTemplateFields, InputMessage
from llama.serving.openai_tools import ChatTool
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, while_connected


class TokenizeRequest(StrictModel):
    """Text to be cut into tokens; never into special ones."""

    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False
    model: str | None = None


class DetokenizeRequest(StrictModel):
    """Tokens to be joined."""

    tokens: list[int]
    model: str | None = None


class ApplyTemplateRequest(StrictModel):
    """A dialog whose prompt is wanted."""

    messages: list[InputMessage] = Field(min_length=1)
    tools: list[ChatTool] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: ChatTemplateFields | None = None
    model: str | None = None


class Tokens(BaseModel):
    """The tokens of a text."""

    tokens: list[int] | list["TokenPiece"]


class TokenPiece(BaseModel):
    """A token and what it spells: text, or bytes that are no whole characters."""

    id: int
    piece: str | list[int]


class Content(BaseModel):
    """The text of tokens."""

    content: str


class Prompt(BaseModel):
    """The prompt of a dialog."""

    prompt: str
    tokens: list[int]


def routes(models: ModelRegistry, lifecycle: Lifecycle) -> APIRouter:
    """The routes of llama-server."""
    router = APIRouter(tags=["llama-server"])

    @router.get("/health")
    @router.get("/v1/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Whether requests are answered: 503 while the server loads or ends, or is broken."""
        if refusal := lifecycle.refusal():
            raise refusal
        for model in models.loaded:
            if model.engine.error is not None:
                raise HttpError(503, f"{model.name} can't go on: {model.engine.error!r:.200}")
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(models.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def only(name: str | None) -> str:
        name = name or models.only_model
        if name is None:
            names = ", ".join(models.names) or "none"
            raise HttpError(400, f"model: name one of those that there are: {names}", param="model")
        return name

    async def tokenized(body: TokenizeRequest) -> dict[str, Any]:
        async with models.use(only(body.model)) as served:
            if body.parse_special:
                text = "parse_special: text never becomes a special token here; leave it out"
                raise HttpError(400, text, param="parse_special")
            tokenizer = served.llama.tokenizer
            tokens = await asyncio.to_thread(
                tokenizer.encode, body.content, bos=body.add_special, eos=False
            )
        if not body.with_pieces:
            return {"tokens": tokens}
        piece = tokenizer.vocabulary.piece
        return {"tokens": [{"id": token, "piece": _shown(piece(token))} for token in tokens]}

    @router.post("/tokenize", responses={200: {"model": Tokens}})
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """The tokens of a text; `with_pieces` also what each spells, as bytes where it is no text.

        `add_special` puts the token in front that begins a text.
        """
        return JSONResponse(await while_connected(request, tokenized(body)))

    async def detokenized(body: DetokenizeRequest) -> dict[str, Any]:
        async with models.use(only(body.model)) as served:
            tokenizer = served.llama.tokenizer
            if wrong := [t for t in body.tokens if not 0 <= t < tokenizer.n_words]:
                last = tokenizer.n_words - 1
                raise HttpError(
                    400, f"tokens: {wrong[0]} is no token id of 0 to {last}", param="tokens"
                )
            return {"content": await asyncio.to_thread(tokenizer.decode, body.tokens)}

    @router.post("/detokenize", responses={200: {"model": Content}})
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """The text of tokens."""
        return JSONResponse(await while_connected(request, detokenized(body)))

    async def applied(body: ApplyTemplateRequest) -> dict[str, Any]:
        name = only(body.model)
        fields = {field: getattr(body, field) for field in ApplyTemplateRequest.model_fields}
        chat = ChatCompletionRequest(**{**fields, "model": name}).chat_request()
        async with models.use(name) as served:
            tokens = await asyncio.to_thread(chat.prompt, served)
            return {"prompt": served.llama.tokenizer.decode(tokens), "tokens": tokens}

    @router.post("/apply-template", responses={200: {"model": Prompt}})
    async def apply_template(body: ApplyTemplateRequest, request: Request) -> Response:
        """The prompt of a dialog, as text and as tokens.

        The text alone does not say which tokens are special: compare tokens.
        """
        return JSONResponse(await while_connected(request, applied(body)))

    async def properties(model: str | None) -> dict[str, Any]:
        async with models.use(only(model)) as served:
            llama, tokenizer = served.llama, served.llama.tokenizer
            return {
                "model_alias": served.name,
                "total_slots": llama.engine.max_batch_size,
                "default_generation_settings": {
                    "n_ctx": served.max_model_len,
                    "params": {"temperature": 0.6, "top_p": 0.9},
                },
                "bos_token": tokenizer.decode([tokenizer.bos_id]),
                "eos_token": tokenizer.decode([tokenizer.eos_id]),
                "modalities": {"vision": False, "audio": False},
                "build_info": f"llama {__version__}",
            }

    @router.get("/props")
    async def props(request: Request, model: str | None = None) -> Response:
        """What the server is set to."""
        return JSONResponse(await while_connected(request, properties(model)))

    return router


def _shown(piece: str | bytes) -> str | list[int]:
    data = piece.encode() if isinstance(piece, str) else piece
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
