"""From the requests of any dialect to the deltas of their answers.

    answer = ChatAnswer(served, ChatRequest(messages, {"temperature": 0}, max_tokens=100))
    async for delta in answer.deltas():
        delta.index, delta.events, delta.finish_reason
    answer.usage

The sequences come from `Llama.requests`, which Python's calls use too: so a request over HTTP has
the tokens and log-probabilities that it has in Python.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llama.dialog import DEFAULT_DATE, Message, Tool, ToolCall
from llama.engine.embedding import embedding_sequences
from llama.engine.request import FinishReason, Sequence, Token
from llama.generation import with_call_grammar
from llama.serving.registry import ModelRegistry, ServedModel
from llama.serving.running import changes
from llama.tokenizer import Tokenizer
from llama.tool_calls import (
    CallStart,
    Event,
    TextDelta,
    ToolChoice,
    ToolUse,
    whole_answer,
)

DEFAULT_SETTINGS = {"temperature": 0.6, "top_p": 0.9}  # Llama's


@dataclass(frozen=True)
class Delta:
    """What is new of answer number `index`; its last delta has the `finish_reason`."""

    index: int
    tokens: list[Token]
    finish_reason: FinishReason | None

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True)
class Usage:
    """Token counts of a request, over its answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @staticmethod
    def of(sequences: list[Sequence]) -> "Usage":
        """The prompt is counted once for each different prompt."""
        prompts = {tuple(s.prompt): s.num_cached_tokens for s in reversed(sequences)}
        return Usage(
            sum(map(len, prompts)),
            sum(len(s.tokens) for s in sequences),
            sum(prompts.values()),
        )


def sequences(
    served: ServedModel,
    name: str,
    prompts: list[list[int]],
    settings: Mapping[str, Any],
    max_tokens: int | None,
    logprobs: bool = False,
    echo: bool = False,
) -> list[Sequence]:
    """Checked requests for prompts of token ids, as `Llama.requests`; none runs yet.

    Settings that are not there have Llama's defaults; the adapter is the one that is served.
    """
    settings = {**DEFAULT_SETTINGS, **settings}
    if served.adapter is not None:
        settings["adapter"] = served.adapter
    return served.llama.requests(name, prompts, settings, max_tokens, logprobs, echo)


async def answer_deltas(
    served: ServedModel, sequences: list[Sequence]
) -> AsyncGenerator[Delta, None]:
    """Runs requests, and yields what is new of each until all are finished.

    A consumer that stops early cancels them. Raises as `running.changes`.
    """
    numbers = {sequence: i for i, sequence in enumerate(sequences)}
    finished: set[Sequence] = set()
    async with aclosing(changes(served, sequences)) as changed:
        async for sequence in changed:
            if sequence in finished:
                continue
            reason, tokens = sequence.take_tokens()
            if reason in ("error", "cancelled"):  # since a moment ago; the next change raises
                continue
            if reason:
                finished.add(sequence)
            if tokens or reason:
                yield Delta(numbers[sequence], tokens, reason)


async def finish(served: ServedModel, sequences: list[Sequence]) -> list[Sequence]:
    """Runs requests to their ends; as `answer_deltas`."""
    async with aclosing(answer_deltas(served, sequences)) as deltas:
        async for _ in deltas:
            pass
    return sequences


async def embed(served: ServedModel, name: str, texts: list[str]) -> list[Sequence]:
    """The requests for the embeddings of texts, finished. Errors call the texts `name`.

    Raises ContextLengthError for a text that is too long, InputError for an empty one.
    """

    def requests() -> list[Sequence]:
        llama = served.llama
        sequences = embedding_sequences(llama.tokenizer, texts, adapter=served.adapter)
        for i, sequence in enumerate(sequences):
            llama.engine.check(sequence, f"{name}[{i}], read twice,")
        return sequences

    return await finish(served, await asyncio.to_thread(requests))


@dataclass(frozen=True)
class ChatRequest:
    """A dialog to be answered, as `Llama.chat_completion` takes it.

    settings: temperature, top_p and `SamplingOptions`; those that are not there have Llama's
        defaults.
    max_tokens: the most tokens of the answer; None goes on to the end of the context.
    continue_final_message: the last message, of the assistant, is the beginning of the answer.
    tools: functions that the answer may call.
    builtin_tools: names of Llama 3.1's own.
    tool_choice: auto, none, required, or a function's name in OpenAI's shape.
    parallel_tool_calls: whether an answer may have several calls.
    date: what a prompt with functions says that today is.
    """

    messages: list[Message]
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    continue_final_message: bool = False
    tools: list[Tool] = field(default_factory=list)
    builtin_tools: list[str] = field(default_factory=list)
    date: str = DEFAULT_DATE
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    def tool_use(self) -> ToolUse:
        """The functions, checked, and how they may be called."""
        return ToolUse(
            self.tools,
            self.tool_choice,
            builtin_tools=self.builtin_tools,
            parallel=self.parallel_tool_calls,
        )

    def prompt(self, served: ServedModel) -> list[int]:
        """The tokens that the answers follow. May take long."""
        use = self.tool_use()
        return served.llama.formatter.encode_dialog_prompt(
            self.messages,
            use.tools,
            builtin_tools=use.builtin_tools,
            date=self.date,
            continue_final_message=self.continue_final_message,
        )


ChatFinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ChatDelta:
    """What is new of answer number `index`: text, beginnings of calls, and their arguments.

    The last delta has the `finish_reason`, and in `stopped_by` the stop string if one ended it.
    """

    index: int
    events: list[Event]
    tokens: list[Token]
    finish_reason: ChatFinishReason | None
    stopped_by: str | None = None


@dataclass
class ChatMessage:
    """A whole answer. The arguments of its calls are JSON text."""

    text: str
    tool_calls: list[ToolCall]
    tokens: list[Token]
    finish_reason: ChatFinishReason
    stopped_by: str | None


class Answer(Protocol):
    """The answers to a `ChatRequest`, of a model or of what has a model's name.

    `tokenizer` is that of the tokens in them; None if they have no tokens. `times` are when the
    first one started and had a token, as `Sequence.times`, as far as it is known.
    """

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def times(self) -> Mapping[str, float]: ...

    @property
    def usage(self) -> Usage: ...

    def deltas(self) -> AsyncGenerator[ChatDelta, None]: ...

    async def messages(self) -> list[ChatMessage]: ...


@asynccontextmanager
async def chat_answer(
    models: ModelRegistry, name: str, request: ChatRequest, keep_alive: float | None = None
) -> AsyncIterator[Answer]:
    """What the model `name` answers, or what `models.chats` has of that name.

    Raises as `ModelRegistry.use` and `ChatAnswer` do.
    """
    if (chat := models.chat(name)) is not None:
        yield chat(request)
        return
    async with models.use(name, keep_alive) as served:
        yield await asyncio.to_thread(ChatAnswer, served, request)


class ChatAnswer:
    """The answers to a `ChatRequest`, `n` of them. The constructor may take long: it encodes.

    Raises InputError for a request that the model can't run.
    """

    def __init__(self, served: ServedModel, request: ChatRequest) -> None:
        self.served = served
        self._use = request.tool_use()
        settings = with_call_grammar(request.settings, self._use, served.llama.formatter)
        self.sequences = sequences(
            served, "the prompt", [request.prompt(served)], settings, request.max_tokens
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.served.llama.tokenizer

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return Usage.of(self.sequences)

    @property
    def times(self) -> Mapping[str, float]:
        """Those of the first answer."""
        return self.sequences[0].times

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        """Runs the request; as `answer_deltas`."""
        readers = [_Reader(self.served, self._use, sequence) for sequence in self.sequences]
        async with aclosing(answer_deltas(self.served, self.sequences)) as deltas:
            async for delta in deltas:
                yield readers[delta.index].read(delta)

    async def messages(self) -> list[ChatMessage]:
        """Runs the request to its end."""
        parts: list[list[ChatDelta]] = [[] for _ in self.sequences]
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                parts[delta.index].append(delta)
        return [whole_message(deltas) for deltas in parts]


class _Reader:
    """Tells text from calls in one answer. Without tools all of it is text."""

    def __init__(self, served: ServedModel, use: ToolUse, sequence: Sequence) -> None:
        formatter = served.llama.formatter
        self._sequence = sequence
        self._parser = None
        self._has_call = False
        if use:
            self._parser = use.parser(formatter, sequence.prompt, sequence.sample_index)

    def read(self, delta: Delta) -> ChatDelta:
        """The events of a delta. `tool_calls` is the reason if the answer began a call."""
        events: list[Event] = []
        if self._parser is None:
            events = [TextDelta(delta.text)] if delta.text else []
        else:
            for token in delta.tokens:
                events += self._parser.feed(token.id, token.text)
            if delta.finish_reason:
                events += self._parser.finish()
        self._has_call |= any(isinstance(event, CallStart) for event in events)
        reason = delta.finish_reason
        assert reason in ("stop", "length", None)
        stopped_by = stop_string(self._sequence) if reason else None
        if reason == "stop" and self._has_call:
            return ChatDelta(delta.index, events, delta.tokens, "tool_calls", stopped_by)
        return ChatDelta(delta.index, events, delta.tokens, reason, stopped_by)


def stop_string(sequence: Sequence) -> str | None:
    """The stop string that ended a request; a stop token is none."""
    return sequence.stopped_by if isinstance(sequence.stopped_by, str) else None


def whole_message(deltas: list[ChatDelta]) -> ChatMessage:
    """The message that all deltas of an answer are."""
    text, calls = whole_answer(event for delta in deltas for event in delta.events)
    reason = deltas[-1].finish_reason
    assert reason is not None
    if reason == "tool_calls" and not calls:  # it was malformed, and is text
        reason = "stop"
    tokens = [token for delta in deltas for token in delta.tokens]
    return ChatMessage(text, calls, tokens, reason, deltas[-1].stopped_by)
