"""OpenAI's chat completions: POST /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat, and the fields that local servers add
(`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`, `continue_final_message`, ...).
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from llama.engine.grammar import Grammar
from llama.engine.request import Token
from llama.serving.answers import ChatAnswer, ChatDelta, ChatMessage, ChatRequest, Usage
from llama.serving.http_errors import HttpError
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, error_body, server_sent_event, stream, while_connected
from llama.tokenizer import Message, Tokenizer
from llama.tool_calls import CallArguments, CallStart, TextDelta


class TextPart(StrictModel):
    """A part of a message; this server has text only."""

    type: Literal["text"]
    text: str


class InputMessage(StrictModel):
    """A message of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None


class StreamOptions(StrictModel):
    """What a stream also carries."""

    include_usage: bool | None = None


class JsonSchema(StrictModel):
    """A named schema."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(StrictModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(StrictModel):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class SamplingFields(StrictModel):
    """The settings that chat and text completions share; null is the default."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=128)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    priority: int | None = None

    def settings(self) -> dict[str, Any]:
        """Those that were set, as `Llama` takes them."""
        names = SamplingFields.model_fields
        settings = {k: v for k in names if (v := getattr(self, k)) is not None}
        if settings.get("top_k") == -1:  # off, in vLLM
            settings["top_k"] = 0
        if "logit_bias" in settings:
            settings["logit_bias"] = token_biases(settings["logit_bias"])
        return settings


class ChatCompletionRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[InputMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    # What has no effect on an answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None

    def chat_request(self) -> ChatRequest:
        """The request in the form of all dialects. Raises HttpError for fields that conflict."""
        settings = self.settings()
        if self.top_logprobs is not None and not self.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.top_logprobs:
            settings["top_logprobs"] = self.top_logprobs
        if self.stream_options is not None and not self.stream:
            raise HttpError(400, "stream_options needs stream: true", param="stream_options")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise HttpError(
                400, "give max_tokens or max_completion_tokens, not both", param="max_tokens"
            )
        is_continued = bool(self.continue_final_message)
        if is_continued and self.messages[-1].role != "assistant":
            raise HttpError(
                400,
                "continue_final_message needs a last message of the assistant",
                param="continue_final_message",
            )
        if self.add_generation_prompt is is_continued:
            raise HttpError(
                400,
                "add_generation_prompt is the contrary of continue_final_message",
                param="add_generation_prompt",
            )
        if self.response_format is not None:
            settings["grammar"] = grammar_of(self.response_format)
        limit = (
            self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        )
        messages = [to_message(message, i) for i, message in enumerate(self.messages)]
        return ChatRequest(messages, settings, limit, is_continued)


def token_biases(biases: dict[str, float]) -> dict[int, float]:
    """OpenAI's logit_bias, whose keys are token ids as strings."""
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError:
        wrong = next(token for token in biases if not token.strip().lstrip("-").isdigit())
        raise HttpError(
            400, f"logit_bias: {wrong[:50]!r} is no token id", param="logit_bias"
        ) from None


def grammar_of(response_format: ResponseFormat) -> Grammar | None:
    """What an answer in that format has to match."""
    if isinstance(response_format, JsonSchemaFormat):
        return Grammar(json_schema=response_format.json_schema.schema_)
    if isinstance(response_format, JsonObjectFormat):
        return Grammar(json_schema={"type": "object"})
    return None


def to_message(message: InputMessage, index: int) -> Message:
    """A message in the form of all dialects."""
    content = message.content
    if content is None:
        raise HttpError(400, f"messages.{index}.content: null", param=f"messages.{index}.content")
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text}


def routes(models: ModelRegistry) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a dialog, whole or as server-sent events."""
        if body.stream:
            return await stream(request, _events(models, body, request.url.path))
        return JSONResponse(await while_connected(request, _completion(models, body)))

    return router


async def _completion(models: ModelRegistry, body: ChatCompletionRequest) -> dict[str, Any]:
    chat = body.chat_request()
    async with models.use(body.model) as served:
        answer = await asyncio.to_thread(ChatAnswer, served, chat)
        messages = await answer.messages()
        tokenizer = served.llama.tokenizer
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [
            {
                "index": i,
                "message": _message(message),
                "logprobs": chat_logprobs(message.tokens, tokenizer) if body.logprobs else None,
                "finish_reason": message.finish_reason,
            }
            for i, message in enumerate(messages)
        ],
        "usage": openai_usage(answer.usage),
    }


def _message(message: ChatMessage) -> dict[str, Any]:
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in message.tool_calls
    ]
    content = message.text if message.text or not calls else None
    result: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    return {**result, "tool_calls": calls} if calls else result


async def _events(
    models: ModelRegistry, body: ChatCompletionRequest, path: str
) -> AsyncGenerator[str, None]:
    """The server-sent events of a stream; from the second on errors are events."""
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish} | more
        return server_sent_event({**head, "choices": [choice]})

    has_begun = False
    try:
        chat = body.chat_request()
        async with models.use(body.model) as served:
            answer = await asyncio.to_thread(ChatAnswer, served, chat)
            tokenizer = served.llama.tokenizer
            seen: set[int] = set()
            async with aclosing(answer.deltas()) as deltas:
                async for delta in deltas:
                    if delta.index not in seen:
                        seen.add(delta.index)
                        yield chunk(delta.index, {"role": "assistant", "content": ""})
                        has_begun = True
                    logprobs = chat_logprobs(delta.tokens, tokenizer) if body.logprobs else None
                    for fields in _delta_fields(delta, needs_one=logprobs is not None):
                        yield chunk(delta.index, fields, logprobs=logprobs)
                        logprobs = None
                    if delta.finish_reason:
                        yield chunk(delta.index, {}, delta.finish_reason)
            if with_usage:
                usage = openai_usage(answer.usage)
                yield server_sent_event({**head, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    except Exception as error:
        if not has_begun:
            raise
        yield server_sent_event(error_body(error, path))


def _delta_fields(delta: ChatDelta, needs_one: bool) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    for event in delta.events:
        if isinstance(event, TextDelta):
            fields.append({"content": event.text})
        elif isinstance(event, CallStart):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.index, "id": event.id, "type": "function", "function": function}
            fields.append({"tool_calls": [call]})
        elif isinstance(event, CallArguments):
            call = {"index": event.index, "function": {"arguments": event.delta}}
            fields.append({"tool_calls": [call]})
    return fields or [{"content": ""}] * (needs_one and bool(delta.tokens))


def chat_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    """OpenAI's log-probabilities of tokens, with the likeliest at each position."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.vocabulary.piece(token)
        data = piece.encode() if isinstance(piece, str) else piece
        text = data.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    content = [
        {
            **entry(token.id, token.logprob),
            "top_logprobs": [entry(*likely) for likely in token.likeliest],
        }
        for token in tokens
        if token.id is not None
    ]
    return {"content": content, "refusal": None}


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Counts of tokens, with those of the prompt that came from the prefix store."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
