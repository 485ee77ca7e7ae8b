"""The answers of OpenAI's chat completions: their shapes, and how they are written.

The models declare the shapes for the OpenAPI description; what is sent is not validated again.
"""

from typing import Any, Literal

from pydantic import BaseModel

from llama.engine.request import Token
from llama.serving.answers import ChatDelta, ChatMessage
from llama.serving.openai_fields import OpenAIUsage
from llama.tokenizer import Tokenizer
from llama.tool_calls import CallArguments, CallStart, TextDelta


class TopLogprob(BaseModel):
    """A token that could have come, with the natural log of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that came, and the likeliest ones in its position."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None


class FunctionCall(BaseModel):
    """A function's name, and its arguments in JSON."""

    name: str
    arguments: str


class AnswerToolCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnswerToolCall] = []


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OpenAIUsage


def answer_message(message: ChatMessage) -> dict[str, Any]:
    """A message of the assistant; its content is null where it only calls tools."""
    calls = message.tool_calls
    content = message.text if message.text or not calls else None
    result: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    return {**result, "tool_calls": calls} if calls else result


def delta_fields(delta: ChatDelta, needs_one: bool) -> list[dict[str, Any]]:
    """The `delta` of each chunk that says what is new; `needs_one` also where nothing is to see."""
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


def token_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities, and the likeliest in each position."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.vocabulary.piece(token)
        data = piece.encode() if isinstance(piece, str) else piece
        text = data.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    return [
        {
            **entry(token.id, token.logprob),
            "top_logprobs": [entry(*likely) for likely in token.likeliest],
        }
        for token in tokens
        if token.id is not None
    ]


def chat_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    """The log-probabilities of a choice."""
    return {"content": token_logprobs(tokens, tokenizer), "refusal": None}
