"""The answers of Ollama's generation: their shapes, and lines of JSON as a response.

The models declare the shapes for the OpenAPI description; what is sent is not validated again.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel

from llama.serving.http_errors import HttpError
from llama.serving.json_output import compact_json
from llama.serving.wire import stream

_NDJSON = "application/x-ndjson"


class LogprobEntry(BaseModel):
    """A token with the natural log of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(LogprobEntry):
    """A token of the answer, and the likeliest ones in its position."""

    top_logprobs: list[LogprobEntry]


class AnswerFields(BaseModel):
    """A line of an answer, or the whole of it. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    logprobs: list[Logprob] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class AnswerFunction(BaseModel):
    """A function that the answer calls."""

    index: int
    name: str
    arguments: dict[str, Any]


class AnswerToolCall(BaseModel):
    """A call that the answer makes."""

    id: str
    function: AnswerFunction


class AnswerMessage(BaseModel):
    """What is new of the answer, or all of it."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[AnswerToolCall] | None = None


class ChatLine(AnswerFields):
    """An answer of POST /api/chat."""

    message: AnswerMessage


class GenerateLine(AnswerFields):
    """An answer of POST /api/generate."""

    response: str


def ndjson(line: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How the OpenAPI description declares an answer that comes whole or in lines."""
    text = {"schema": {"type": "string", "description": f"Lines of JSON: {line.__name__}"}}
    description = "The answer, or with `stream` its lines"
    return {200: {"model": line, "description": description, "content": {_NDJSON: text}}}


async def lines(request: Request, objects: AsyncGenerator[dict[str, Any], None]) -> Response:
    """A response of one object per line, the first of which is awaited; see `wire.stream`."""

    async def written() -> AsyncGenerator[str, None]:
        async with aclosing(objects):
            async for each in objects:
                yield _line(each)

    def write_error(error: HttpError) -> str:
        return _line(error.body(request.url.path))

    return await stream(request, written(), write_error, _NDJSON)


def _line(content: Any) -> str:
    return compact_json(content) + "\n"
