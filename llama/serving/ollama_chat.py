"""Ollama's generation: POST /api/chat and POST /api/generate.

An answer comes as lines of JSON, each with new text or whole calls, and a last one with the reason,
counts and durations; without `stream` these are one object. A request without messages or prompt
loads the model, and unloads it where `keep_alive` is 0.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from llama.dialog import Message, ToolCall, call_arguments
from llama.serving.answers import Answer, ChatAnswer, ChatRequest, chat_answer
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.ollama_answers import ChatLine, GenerateLine, lines, ndjson
from llama.serving.ollama_fields import GenerationFields, timestamp
from llama.serving.openai_chat_answers import token_logprobs
from llama.serving.openai_tools import ChatTool
from llama.serving.registry import ModelRegistry, ServedModel
from llama.serving.wire import StrictModel, while_connected
from llama.tool_calls import CallEnd, Event, TextDelta


class CalledFunction(StrictModel):
    """A function that an earlier answer called."""

    name: str
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class InputToolCall(StrictModel):
    """A call that an earlier answer made."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None

    def call(self) -> ToolCall:
        """The call in the form of all dialects."""
        function = self.function
        call: ToolCall = {"function": {"name": function.name, "arguments": function.arguments}}
        return call if self.id is None else {**call, "id": self.id}


class InputMessage(StrictModel):
    """A message of any role; thoughts of earlier answers are no part of the prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = Field(None, max_length=0)
    tool_calls: list[InputToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def message(self) -> Message:
        """The message in the form of all dialects."""
        message: Message = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            message["tool_calls"] = [call.call() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_name is not None:
            message["name"] = self.tool_name
        return message


class ChatFields(GenerationFields):
    """The body of POST /api/chat."""

    messages: list[InputMessage] | None = None
    tools: list[ChatTool] | None = None

    def chat_request(self) -> ChatRequest:
        """The request in the form of all dialects. A last message of the assistant goes on."""
        messages = [message.message() for message in self.messages or ()]
        return ChatRequest(
            messages,
            self.settings(),
            self.given_options.max_tokens,
            messages[-1]["role"] == "assistant",
            tools=[tool.function.tool() for tool in self.tools or ()],
        )

    def part(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What a line or a whole answer says."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        return {"message": {**message, "tool_calls": calls} if calls else message}


class GenerateFields(GenerationFields):
    """The body of POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: list[int] | None = Field(None, max_length=0)
    images: list[str] | None = Field(None, max_length=0)
    width: None = None
    height: None = None
    steps: None = None

    def chat_request(self) -> ChatRequest:
        """The request in the form of all dialects."""
        messages: list[Message] = [{"role": "user", "content": self.prompt or ""}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        kind = _RawRequest if self.raw else ChatRequest
        return kind(messages, self.settings(), self.given_options.max_tokens)

    def part(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What a line or a whole answer says."""
        return {"response": text}


class _RawRequest(ChatRequest):
    """A prompt that is no dialog, but text that goes on."""

    def prompt(self, served: ServedModel) -> list[int]:
        """The tokens of the text."""
        *system, message = self.messages
        if system:
            raise HttpError(400, "system: a raw prompt has none; write it into the prompt")
        return served.llama.tokenizer.encode(message["content"], bos=True)


def routes(models: ModelRegistry) -> APIRouter:
    """The routes of generation."""
    router = APIRouter()

    @router.post("/api/chat", response_model=None, responses=ndjson(ChatLine))
    async def chat(body: ChatFields, request: Request) -> Response:
        """Answers a dialog, in lines or as a whole; an empty one loads the model."""
        return await _respond(models, body, bool(body.messages), request)

    @router.post("/api/generate", response_model=None, responses=ndjson(GenerateLine))
    async def generate(body: GenerateFields, request: Request) -> Response:
        """Answers a prompt, in lines or as a whole; an empty one loads the model."""
        return await _respond(models, body, bool(body.prompt), request)

    return router


async def _respond(
    models: ModelRegistry, body: ChatFields | GenerateFields, has_prompt: bool, request: Request
) -> Response:
    if not has_prompt:
        return JSONResponse(await while_connected(request, _load(models, body)))
    if body.stream is False:
        return JSONResponse(await while_connected(request, _whole(models, body)))
    return await lines(request, _lines(models, body))


async def _load(models: ModelRegistry, body: ChatFields | GenerateFields) -> dict[str, Any]:
    """Loads the model of a request without a prompt, or unloads it."""
    reason = "unload" if body.seconds_alive == 0 else "load"
    if models.chat(body.model) is None and (reason == "load" or models.is_loaded(body.model)):
        async with models.use(body.model, body.seconds_alive):
            pass
    return _object(body, _Part(end={"done_reason": reason}))


async def _whole(models: ModelRegistry, body: ChatFields | GenerateFields) -> dict[str, Any]:
    whole = _Part()
    async with aclosing(_parts(models, body)) as parts:
        async for part in parts:
            whole.text += part.text
            whole.calls += part.calls
            whole.logprobs += part.logprobs
            whole.end = part.end
    return _object(body, whole)


async def _lines(
    models: ModelRegistry, body: ChatFields | GenerateFields
) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(_parts(models, body)) as parts:
        async for part in parts:
            yield _object(body, part)


@dataclass
class _Part:
    """What is new of an answer; `end` is what its last part says besides."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None


def _object(body: ChatFields | GenerateFields, part: _Part) -> dict[str, Any]:
    """A part as a client gets it."""
    return {
        "model": body.model,
        "created_at": timestamp(time.time()),
        **body.part(part.text, part.calls),
        **({"logprobs": part.logprobs} if part.logprobs else {}),
        "done": part.end is not None,
        **(part.end or {}),
    }


async def _parts(
    models: ModelRegistry, body: ChatFields | GenerateFields
) -> AsyncGenerator[_Part, None]:
    """Runs a request."""
    begin = time.monotonic()
    async with _answer(models, body) as answer:
        loaded = time.monotonic()
        async with aclosing(answer.deltas()) as deltas:
            async for delta in deltas:
                part = _part(delta.events)
                if body.logprobs and answer.tokenizer is not None:
                    part.logprobs = token_logprobs(delta.tokens, answer.tokenizer)
                if part != _Part():
                    yield part
        reason = "length" if delta.finish_reason == "length" else "stop"
        yield _Part(end={"done_reason": reason, **_counts(answer, begin, loaded)})


@asynccontextmanager
async def _answer(
    models: ModelRegistry, body: ChatFields | GenerateFields
) -> AsyncIterator[Answer]:
    """The answer; raises HttpError for what only a model's own has."""
    request = body.chat_request()
    async with chat_answer(models, body.model, request, body.seconds_alive) as answer:
        if isinstance(answer, ChatAnswer):
            body.given_options.limit(answer.sequences[0], answer.served)
        else:
            refused = {
                "raw": isinstance(request, _RawRequest),
                "logprobs": body.logprobs,
                "options.num_ctx": body.given_options.num_ctx is not None,
            }
            for name, is_given in refused.items():
                if is_given:
                    raise HttpError(400, f"{name}: the answers of {body.model} have none")
        yield answer


def _part(events: list[Event]) -> _Part:
    """Text and whole calls; of a call that broke off the text as the model wrote it."""
    part = _Part()
    for event in events:
        if isinstance(event, TextDelta):
            part.text += event.text
        elif isinstance(event, CallEnd) and event.call is None:
            part.text += event.source
        elif isinstance(event, CallEnd) and event.call is not None:
            function: dict[str, Any] = {
                "index": event.index,
                "name": event.call["function"]["name"],
            }
            function["arguments"] = call_arguments(event.call)
            part.calls.append({"id": event.call["id"], "function": function})
    return part


def _counts(answer: Answer, begin: float, loaded: float) -> dict[str, int]:
    """Token counts, and durations in nanoseconds."""
    end, usage = time.monotonic(), answer.usage
    started = answer.times.get("started", loaded)
    first = answer.times.get("first_token", started)
    durations = {
        "total_duration": end - begin,
        "load_duration": loaded - begin,
        "prompt_eval_duration": first - started,
        "eval_duration": end - first,
    }
    counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}
    return counts | {name: int(seconds * 1e9) for name, seconds in durations.items()}
