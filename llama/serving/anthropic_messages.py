"""Anthropic's messages: POST /v1/messages and POST /v1/messages/count_tokens.

An answer is a list of blocks, of text and of calls, and a stream builds them one by one. The header
`anthropic-beta` and queries change nothing.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from llama.dialog import CalledFunction, Function, Message, Tool, ToolCall, call_arguments
from llama.engine.grammar import Grammar
from llama.serving.answers import Answer, ChatDelta, ChatMessage, ChatRequest, Usage, chat_answer
from llama.serving.anthropic_types import (
    AnswerMessage,
    AnyChoice,
    AutoChoice,
    ErrorAnswer,
    InputMessage,
    InputTool,
    MessagesRequest,
    NoChoice,
    OneChoice,
    PromptFields,
    TextBlock,
    TokenCount,
    ToolResultBlock,
    ToolUseBlock,
)
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.openai_fields import streamed
from llama.serving.registry import ModelRegistry
from llama.serving.wire import server_sent_event, stream, while_connected
from llama.tool_calls import CallArguments, CallStart, Event, TextDelta, ToolChoice

# Claude Code's first block of system text has this, and differs in each request: as a part of the
# prompt it would keep every other part out of the prefix store.
_BILLING_HEADER = "x-anthropic-billing-header"


def routes(models: ModelRegistry) -> APIRouter:
    """The routes of messages."""
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ErrorAnswer, "description": "The request is wrong"},
        "5XX": {"model": ErrorAnswer, "description": "The server can't answer"},
    }
    router = APIRouter(tags=["Anthropic"], responses=errors)

    @router.post(
        "/messages",
        response_model=None,
        responses=streamed(AnswerMessage, "Events of Anthropic's messages"),
    )
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answers a dialog, whole or as server-sent events."""
        if body.stream:
            return await stream(request, _events(models, body), _error_event)
        return JSONResponse(await while_connected(request, _answer(models, body)))

    @router.post("/messages/count_tokens", response_model=TokenCount)
    async def count_tokens(body: PromptFields) -> Response:
        """Counts the tokens of a prompt, as `usage` of its answer does."""
        chat = chat_request(body)
        async with models.use(body.model) as served:
            prompt = await asyncio.to_thread(chat.prompt, served)
        return JSONResponse({"input_tokens": len(prompt)})

    return router


def chat_request(body: PromptFields) -> ChatRequest:
    """A prompt in the form of all dialects. Raises HttpError for what Llama has no form for."""
    messages = _dialog(body)
    is_continued = bool(messages) and messages[-1]["role"] == "assistant"
    settings: dict[str, Any] = {}
    if body.output_config is not None and body.output_config.format is not None:
        settings["grammar"] = Grammar(json_schema=body.output_config.format.schema_)
    max_tokens = None
    if isinstance(body, MessagesRequest):
        max_tokens = body.max_tokens
        for name in ("temperature", "top_k", "top_p"):
            if (value := getattr(body, name)) is not None:
                settings[name] = value
        if body.stop_sequences:
            settings["stop"] = body.stop_sequences
    choice = body.tool_choice or AutoChoice(type="auto")
    return ChatRequest(
        messages,
        settings,
        max_tokens,
        is_continued,
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=isinstance(choice, NoChoice) or not choice.disable_parallel_tool_use,
    )


def _tool_choice(choice: AutoChoice | AnyChoice | OneChoice | NoChoice) -> ToolChoice:
    if isinstance(choice, OneChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _tool(tool: InputTool) -> Tool:
    function: Function = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _dialog(body: PromptFields) -> list[Message]:
    """The messages of a prompt; turns of one role that follow each other are one turn."""
    blocks = body.system or []
    if blocks and blocks[0].text.startswith(_BILLING_HEADER):
        blocks = blocks[1:]
    dialog: list[Message] = []
    if blocks:
        dialog.append({"role": "system", "content": _text(blocks)})
    for i, message in enumerate(body.messages):
        for new in _turns(message, f"messages.{i}.content"):
            last = dialog[-1] if dialog else None
            if last and last["role"] == new["role"] != "tool" and "tool_calls" not in last:
                new["content"] = f"{last['content']}\n\n{new['content']}"
                dialog.pop()
            dialog.append(new)
    return dialog


def _turns(message: InputMessage, name: str) -> Iterator[Message]:
    """The turns of one message: each result of a call is one, and so is the text beside them."""
    text: list[TextBlock] = []
    calls: list[ToolCall] = []
    for i, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            if calls:
                raise HttpError(
                    400, f"{name}.{i}: text after tool_use; Llama's calls end an answer"
                )
            text.append(block)
        elif isinstance(block, ToolUseBlock):
            function: CalledFunction = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            if text:
                yield {"role": message.role, "content": _text(text)}
            text = []
            yield {
                "role": "tool",
                "content": _text(block.content),
                "tool_call_id": block.tool_use_id,
                "is_error": bool(block.is_error),
            }
    if calls:
        yield {"role": "assistant", "content": _text(text), "tool_calls": calls}
    elif text or not message.content:
        yield {"role": message.role, "content": _text(text)}


def _text(blocks: list[TextBlock]) -> str:
    return "".join(block.text for block in blocks)


async def _answer(models: ModelRegistry, body: MessagesRequest) -> dict[str, Any]:
    chat = chat_request(body)
    async with chat_answer(models, body.model, chat) as answer:
        (message,) = await answer.messages()
    usage, stop = _usage(answer.usage), _stop(message, answer.usage, body.max_tokens)
    return {**_head(body), "content": _content(message), **stop, "usage": usage}


def _head(body: MessagesRequest) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
    }


def _content(message: ChatMessage) -> list[dict[str, Any]]:
    """The blocks of a whole answer; of an empty one an empty block of text."""
    text = {"type": "text", "text": message.text}
    calls = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": call_arguments(call),
        }
        for call in message.tool_calls
    ]
    return [text, *calls] if message.text or not calls else calls


def _stop(end: ChatMessage | ChatDelta, usage: Usage, max_tokens: int) -> dict[str, Any]:
    """Why an answer ended."""
    if end.stopped_by is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stopped_by}
    if end.finish_reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if end.finish_reason == "stop":
        return {"stop_reason": "end_turn", "stop_sequence": None}
    is_full = usage.completion_tokens < max_tokens
    name = "model_context_window_exceeded" if is_full else "max_tokens"
    return {"stop_reason": name, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


async def _events(models: ModelRegistry, body: MessagesRequest) -> AsyncGenerator[str, None]:
    """The server-sent events of a stream."""
    chat, blocks, has_begun = chat_request(body), _Blocks(), False
    async with (
        chat_answer(models, body.model, chat) as answer,
        aclosing(answer.deltas()) as deltas,
    ):
        async for delta in deltas:
            if not has_begun:
                has_begun = True
                yield _event("message_start", message=_first(body, answer))
            for event in delta.events:
                for line in blocks.add(event):
                    yield line
            if delta.finish_reason:
                for line in blocks.end():
                    yield line
                stop = _stop(delta, answer.usage, body.max_tokens)
                yield _event("message_delta", delta=stop, usage=_usage(answer.usage))
    yield _event("message_stop")


def _error_event(error: HttpError) -> str:
    return server_sent_event(error.body("/v1/messages"), event="error")


def _first(body: MessagesRequest, answer: Answer) -> dict[str, Any]:
    """The message that a stream begins with: its content is empty, the prompt is counted."""
    usage = {**_usage(answer.usage), "output_tokens": 0}
    stop = {"stop_reason": None, "stop_sequence": None}
    return {**_head(body), "content": [], **stop, "usage": usage}


class _Blocks:
    """The events of an answer's blocks, of which one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._is_text = False

    def add(self, event: Event) -> Iterator[str]:
        """What an event of the answer becomes."""
        if isinstance(event, TextDelta):
            if not self._is_text:
                yield from self._open({"type": "text", "text": ""})
            yield self._delta(type="text_delta", text=event.text)
        elif isinstance(event, CallStart):
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            yield from self._open(block)
        elif isinstance(event, CallArguments):
            yield self._delta(type="input_json_delta", partial_json=event.delta)

    def end(self) -> Iterator[str]:
        """The end of the last block; an answer without one gets an empty text."""
        if self._index < 0:
            yield from self._open({"type": "text", "text": ""})
        yield _event("content_block_stop", index=self._index)

    def _open(self, block: dict[str, Any]) -> Iterator[str]:
        if self._index >= 0:
            yield _event("content_block_stop", index=self._index)
        self._index += 1
        self._is_text = block["type"] == "text"
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, **delta: str) -> str:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(event: str, **data: Any) -> str:
    return server_sent_event({"type": event, **data}, event)
