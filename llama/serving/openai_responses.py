"""OpenAI's responses: POST /v1/responses, without state.

https://platform.openai.com/docs/api-reference/responses. Nothing is stored: each request carries
its whole dialog, and what refers to a stored one is refused. Tools of kinds that a server would
have to run itself are skipped, as the model can do without them.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from llama.engine.grammar import Grammar
from llama.serving.answers import DEFAULT_SETTINGS, ChatRequest, chat_answer
from llama.serving.json_output import JSONResponse
from llama.serving.openai_fields import (
    JsonObjectFormat,
    JsonSchema,
    SamplingFields,
    StreamOptions,
    TextFormat,
    streamed,
    wrong,
)
from llama.serving.openai_response_events import ResponseObject, ResponseWriter
from llama.serving.openai_response_items import Item, dialog
from llama.serving.openai_tools import FunctionFields, ResponseToolChoice, chosen_tools
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel, stream, while_connected


class SchemaFormat(JsonSchema):
    """JSON that a schema describes."""

    type: Literal["json_schema"]


class TextConfig(StrictModel):
    """What the text of an answer has to be."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: None = None


class FunctionTool(FunctionFields):
    """A function that the client runs."""

    type: Literal["function"]
    defer_loading: Literal[False] | None = None
    output_schema: None = None
    allowed_callers: None = None


class OtherTool(BaseModel):
    """A tool of another kind (web_search, custom, namespace, ...), which is skipped."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind(tool: Any) -> str:
    is_function = isinstance(tool, dict) and tool.get("type") == "function"
    return "a function" if is_function else "another"  # no field has such a name


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("a function")] | Annotated[OtherTool, Tag("another")],
    Discriminator(_kind),
]

Includable = Literal[
    "message.output_text.logprobs",
    # Of tools and of reasoning, which this server has not.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponsesRequest(SamplingFields):
    """The body of POST /v1/responses."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextConfig | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Includable] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # What has no effect on an answer.
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    max_tool_calls: int | None = None  # of tools that the server runs
    # What this server does not have.
    background: Literal[False] | None = None
    context_management: None = None
    conversation: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    reasoning: None = None
    store: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        asked = self.include or []
        return self.top_logprobs is not None or "message.output_text.logprobs" in asked

    def chat_request(self) -> ChatRequest:
        """The request in the form of all dialects. Raises HttpError for fields that conflict."""
        settings = self.sampling()
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "it needs stream: true")
        if self.top_logprobs:
            settings["top_logprobs"] = self.top_logprobs
        text_format = self.text.format if self.text else None
        if isinstance(text_format, SchemaFormat):
            settings["grammar"] = Grammar(json_schema=text_format.schema_)
        elif isinstance(text_format, JsonObjectFormat):
            settings["grammar"] = Grammar(json_schema={"type": "object"})
        tools = [tool.tool() for tool in self.tools or [] if isinstance(tool, FunctionTool)]
        tools, choice = chosen_tools(tools, self.tool_choice)
        return ChatRequest(
            dialog(self.instructions, self.input),
            settings,
            self.max_output_tokens,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
        )

    def response(self) -> dict[str, Any]:
        """The response before there is an answer, a `ResponseObject`."""
        text_format = self.text.format if self.text else None
        choice = self.tool_choice or "auto"
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": None,
            "store": False,
            "temperature": DEFAULT_SETTINGS["temperature"]
            if self.temperature is None
            else self.temperature,
            "text": {"format": _json(text_format or TextFormat(type="text"))},
            "tool_choice": choice.model_dump() if isinstance(choice, BaseModel) else choice,
            "tools": [_json(tool) for tool in self.tools or [] if isinstance(tool, FunctionTool)],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": DEFAULT_SETTINGS["top_p"] if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _json(model: BaseModel) -> dict[str, Any]:
    """The fields by their names in JSON. Schemas in them stay what they are, however deep."""
    fields = type(model).model_fields.items()
    return {info.alias or name: getattr(model, name) for name, info in fields}


def routes(models: ModelRegistry) -> APIRouter:
    """The route of responses."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/responses",
        response_model=None,
        responses=streamed(ResponseObject, "Events from response.created on"),
    )
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answers a dialog, whole or as server-sent events."""
        run = _Run(models, body)
        if body.stream:
            return await stream(request, run.events(), run.writer.fail)
        return JSONResponse(await while_connected(request, run.whole()))

    return router


class _Run:
    """A request and its response, which the events of a stream and its errors share."""

    def __init__(self, models: ModelRegistry, body: ResponsesRequest) -> None:
        self._models, self._body = models, body
        self.writer = ResponseWriter(body.response())

    async def events(self) -> AsyncGenerator[str, None]:
        """The events, from the first token on: an error before it has a real status."""
        body, writer = self._body, self.writer
        async with chat_answer(self._models, body.model, body.chat_request()) as answer:
            tokenizer = answer.tokenizer
            if body.has_logprobs and tokenizer is None:
                raise wrong("include", f"the answers of {body.model} have no log-probabilities")
            has_begun = False
            async with aclosing(answer.deltas()) as deltas:
                async for delta in deltas:
                    if not has_begun:
                        has_begun = True
                        for event in writer.begin(tokenizer if body.has_logprobs else None):
                            yield event
                    for event in writer.add(delta):
                        yield event
        is_complete = delta.finish_reason != "length"
        for event in writer.end(is_complete, answer.usage, int(time.time())):
            yield event

    async def whole(self) -> dict[str, Any]:
        """The response after its last event."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.writer.response
