"""OpenAI's chat completions: POST /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat, and the fields that local servers add
(`openai_fields`, `continue_final_message`, ...).
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from llama.dialog import DEFAULT_DATE, Message, Role
from llama.engine.request import Token
from llama.serving.answers import Answer, ChatRequest, chat_answer
from llama.serving.json_output import JSONResponse
from llama.serving.openai_chat_answers import (
    ChatCompletion,
    answer_message,
    chat_logprobs,
    delta_fields,
)
from llama.serving.openai_fields import GenerationFields, openai_usage, streamed, wrong
from llama.serving.openai_tools import ChatTool, ChatToolChoice, InputToolCall, chosen_tools
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, server_sent_event, stream, while_connected


class TextPart(StrictModel):
    """A part of a message; this server has text only."""

    type: Literal["text"]
    text: str


class InputMessage(StrictModel):
    """A message of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[InputToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    # In OpenAI's own messages, which come back as they were sent.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = Field(None, max_length=0)
    parsed: Any = None  # which OpenAI's client adds; it says nothing new

    def message(self, index: int) -> Message:
        """In the form of all dialects. Raises HttpError where a field belongs to another role."""
        where = f"messages.{index}"
        if self.tool_calls and self.role != "assistant":
            raise wrong(f"{where}.tool_calls", "only the assistant calls tools")
        if self.tool_call_id is not None and self.role != "tool":
            raise wrong(f"{where}.tool_call_id", "only a tool answers a call")
        if self.name is not None and self.role != "tool":
            raise wrong(f"{where}.name", "Llama's prompts have no names; write it into the content")
        content = self.content
        if content is None and not self.tool_calls:
            raise wrong(f"{where}.content", "it is null or missing")
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role: Role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role, "content": content or ""}
        if self.tool_calls:
            message["tool_calls"] = [call.call() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatTemplateFields(StrictModel):
    """Variables of the chat templates that were released with the models."""

    date_string: str | None = None
    builtin_tools: list[str] | None = None
    tools_in_user_message: Literal[True] | None = None


class ChatCompletionRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    messages: list[InputMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: ChatTemplateFields | None = None
    tools: list[ChatTool] | None = None
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # What has no effect on an answer.
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    # What this server does not have.
    audio: None = None
    functions: None = None
    function_call: None = None
    moderation: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None

    def chat_request(self) -> ChatRequest:
        """The request in the form of all dialects. Raises HttpError for fields that conflict."""
        settings = self.settings()
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "it needs logprobs: true")
        if self.top_logprobs:
            settings["top_logprobs"] = self.top_logprobs
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise wrong("max_tokens", "it differs from max_completion_tokens; give one")
        is_continued = bool(self.continue_final_message)
        if is_continued and self.messages[-1].role != "assistant":
            raise wrong("continue_final_message", "the last message is not the assistant's")
        if self.add_generation_prompt is is_continued:
            raise wrong("add_generation_prompt", "it is the contrary of continue_final_message")
        messages = [message.message(i) for i, message in enumerate(self.messages)]
        limit = limits.pop() if limits else None
        template = self.chat_template_kwargs or ChatTemplateFields()
        tools = [tool.function.tool() for tool in self.tools or []]
        tools, choice = chosen_tools(tools, self.tool_choice)
        return ChatRequest(
            messages,
            settings,
            limit,
            is_continued,
            tools,
            template.builtin_tools or [],
            DEFAULT_DATE if template.date_string is None else template.date_string,
            choice,
            self.parallel_tool_calls is not False,
        )


def routes(models: ModelRegistry) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/chat/completions",
        response_model=None,
        responses=streamed(ChatCompletion, "chat.completion.chunk objects, then [DONE]"),
    )
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a dialog, whole or as server-sent events."""
        if body.stream:
            return await stream(request, _events(models, body))
        return JSONResponse(await while_connected(request, _completion(models, body)))

    return router


async def _completion(models: ModelRegistry, body: ChatCompletionRequest) -> dict[str, Any]:
    chat = body.chat_request()
    async with chat_answer(models, body.model, chat) as answer:
        logprobs = _logprobs(body, answer)
        messages = await answer.messages()
    return {
        **_head(body, "chat.completion"),
        "choices": [
            {
                "index": i,
                "message": answer_message(message),
                "logprobs": logprobs(message.tokens),
                "finish_reason": message.finish_reason,
            }
            for i, message in enumerate(messages)
        ],
        "usage": openai_usage(answer.usage),
    }


def _logprobs(
    body: ChatCompletionRequest, answer: Answer
) -> Callable[[list[Token]], dict[str, Any] | None]:
    """From tokens to the `logprobs` of a choice, which are null if nobody asked for them."""
    if not body.logprobs:
        return lambda tokens: None
    tokenizer = answer.tokenizer
    if tokenizer is None:
        raise wrong("logprobs", f"the answers of {body.model} have none")
    return lambda tokens: chat_logprobs(tokens, tokenizer)


def _head(body: ChatCompletionRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": body.model}


async def _events(models: ModelRegistry, body: ChatCompletionRequest) -> AsyncGenerator[str, None]:
    """The server-sent events of a stream."""
    head = _head(body, "chat.completion.chunk")

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish} | more
        return server_sent_event({**head, "choices": [choice]})

    chat = body.chat_request()
    async with chat_answer(models, body.model, chat) as answer:
        logprobs_of = _logprobs(body, answer)
        seen: set[int] = set()
        async with aclosing(answer.deltas()) as deltas:
            async for delta in deltas:
                if delta.index not in seen:
                    seen.add(delta.index)
                    yield chunk(delta.index, {"role": "assistant", "content": ""})
                logprobs = logprobs_of(delta.tokens)
                for fields in delta_fields(delta, needs_one=logprobs is not None):
                    yield chunk(delta.index, fields, logprobs=logprobs)
                    logprobs = None
                if delta.finish_reason:
                    yield chunk(delta.index, {}, delta.finish_reason)
        if body.streams_usage:
            usage = openai_usage(answer.usage)
            yield server_sent_event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"
