"""OpenAI's text completions: POST /v1/completions.

https://platform.openai.com/docs/api-reference/completions. A prompt that is text begins with the
tokenizer's bos token, as in `Llama.text_completion`, and is echoed as it came; token ids are taken
and echoed as they are.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from llama.engine.request import Sequence, Token
from llama.serving.answers import Delta, Usage, answer_deltas, sequences
from llama.serving.json_output import JSONResponse
from llama.serving.openai_fields import (
    GenerationFields,
    OpenAIUsage,
    openai_usage,
    streamed,
    wrong,
)
from llama.serving.registry import ModelRegistry, ServedModel
from llama.serving.wire import server_sent_event, stream, while_connected
from llama.tokenizer import Tokenizer

_MAX_TOKENS = 16  # OpenAI's default


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: None = None  # these models are not trained to fill in

    @property
    def num_choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list. Raises HttpError where there is none, or an empty one."""
        prompts: Any = self.prompt
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if not prompts or not all(prompts):
            raise wrong("prompt", "it is empty; it needs at least one character or token")
        return prompts


class CompletionLogprobs(BaseModel):
    """Tokens with the natural logs of their probabilities; null for a first one."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of `n` answers to each prompt; those of a prompt follow each other."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: OpenAIUsage


def routes(models: ModelRegistry) -> APIRouter:
    """The route of text completions."""
    router = APIRouter(tags=["OpenAI"])

    @router.post(
        "/completions",
        response_model=None,
        responses=streamed(Completion, "text_completion objects, then [DONE]"),
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Completes texts, whole or as server-sent events."""
        if body.stream:
            return await stream(request, _events(models, body))
        return JSONResponse(await while_connected(request, _completion(models, body)))

    return router


def _sequences(served: ServedModel, body: CompletionRequest) -> list[Sequence]:
    """The checked requests, `best_of` for each prompt."""
    settings = body.settings()
    if body.best_of is not None:
        if body.best_of < body.num_choices:
            raise wrong("best_of", f"it is less than n, {body.num_choices}")
        if body.stream and body.best_of > body.num_choices:
            raise wrong("best_of", "a stream can't wait for the best; give n alone")
        settings["n"] = body.best_of
    if body.logprobs:
        settings["top_logprobs"] = body.logprobs
    tokenizer = served.llama.tokenizer
    prompts = [
        tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt
        for prompt in body.prompts()
    ]
    max_tokens = _MAX_TOKENS if body.max_tokens is None else body.max_tokens
    has_logprobs = body.logprobs is not None
    name, echo = "prompt[{}]", bool(body.echo)
    return sequences(served, name, prompts, settings, max_tokens, has_logprobs, echo)


def _head(body: CompletionRequest) -> dict[str, Any]:
    name = f"cmpl-{uuid.uuid4().hex}"
    kind, created = "text_completion", int(time.time())
    return {"id": name, "object": kind, "created": created, "model": body.model}


async def _completion(models: ModelRegistry, body: CompletionRequest) -> dict[str, Any]:
    async with models.use(body.model) as served:
        answers = await asyncio.to_thread(_sequences, served, body)
        tokens: list[list[Token]] = [[] for _ in answers]
        async with aclosing(answer_deltas(served, answers)) as deltas:
            async for delta in deltas:
                tokens[delta.index] += delta.tokens
        choices: list[dict[str, Any]] = []
        count = len(answers) // len(body.prompts())
        for first in range(0, len(answers), count):
            chosen = list(range(first, first + count))
            if count > body.num_choices:
                chosen.sort(key=lambda i: -_mean_logprob(answers[i]))
            for i in chosen[: body.num_choices]:
                writer = _ChoiceWriter(body, answers[i], served.llama.tokenizer)
                choices.append(
                    {
                        "index": len(choices),
                        **writer.write(Delta(i, tokens[i], answers[i].finish_reason)),
                    }
                )
    return {**_head(body), "choices": choices, "usage": openai_usage(Usage.of(answers))}


def _mean_logprob(sequence: Sequence) -> float:
    """By which `best_of` chooses; a stop token counts as a token."""
    logprobs = list(sequence.logprobs)
    if sequence.stop_token is not None:
        logprobs.append(sequence.stop_token.logprob)
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


async def _events(models: ModelRegistry, body: CompletionRequest) -> AsyncGenerator[str, None]:
    """The server-sent events of a stream."""
    head = _head(body)
    async with models.use(body.model) as served:
        answers = await asyncio.to_thread(_sequences, served, body)
        writers = [_ChoiceWriter(body, answer, served.llama.tokenizer) for answer in answers]
        async with aclosing(answer_deltas(served, answers)) as deltas:
            async for delta in deltas:
                choice = {"index": delta.index, **writers[delta.index].write(delta)}
                yield server_sent_event({**head, "choices": [choice]})
        if body.streams_usage:
            usage = openai_usage(Usage.of(answers))
            yield server_sent_event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


class _ChoiceWriter:
    """Writes what is new of one answer: its text and, if asked, its tokens' log-probabilities."""

    def __init__(self, body: CompletionRequest, sequence: Sequence, tokenizer: Tokenizer) -> None:
        self._sequence, self._tokenizer = sequence, tokenizer
        self._echoes, self._has_logprobs = bool(body.echo), body.logprobs is not None
        # Text gets a bos token, which is no part of it.
        is_text = isinstance(body.prompts()[0], str)
        self._num_hidden = 1 if is_text else 0
        self._num_characters = 0

    def write(self, delta: Delta) -> dict[str, Any]:
        """A choice without its index."""
        begins = self._echoes
        self._echoes = False
        tokens = (self._prompt_tokens() if begins else []) + delta.tokens
        text = "".join(token.text for token in tokens)
        logprobs = None
        if self._has_logprobs:
            if delta.finish_reason and self._sequence.stop_token is not None:
                tokens = [*tokens, self._sequence.stop_token]
            logprobs = self._logprobs(tokens)
            if begins and not self._num_hidden:  # nothing comes before the first token
                logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        self._num_characters += len(text)
        return {"text": text, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def _prompt_tokens(self) -> list[Token]:
        sequence = self._sequence
        tokens = []
        for i in range(self._num_hidden, len(sequence.prompt)):
            logprob = sequence.prompt_logprobs[i] if self._has_logprobs else 0.0
            likeliest = sequence.prompt_likeliest[i] if sequence.prompt_likeliest else []
            text = sequence.prompt_token_texts[i]
            tokens.append(Token(sequence.prompt[i], text, logprob, tuple(likeliest)))
        return tokens

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        names: list[str] = []
        logprobs, top, offsets = [], [], []
        offset = self._num_characters
        for token in tokens:
            if token.id is not None:
                likeliest = {self._name(id): logprob for id, logprob in token.likeliest}
                names.append(self._name(token.id))
                logprobs.append(token.logprob)
                top.append({**likeliest, names[-1]: token.logprob})
                offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        """A token's text, or as in OpenAI's answers its bytes, where they are no whole text."""
        piece = self._tokenizer.vocabulary.piece(token)
        if isinstance(piece, str):
            return piece
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
