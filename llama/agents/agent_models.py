"""Models that agents ask: one in this process, one of a server's registry, or any OpenAI server's.

    reply = await LocalModel(Llama.build("params/tiny")).ask(messages, tools, run)
    reply.message, reply.finish_reason

Each follows `ChatModel`, so the loop over tools is the same for all. A question that is cancelled,
or whose time is up, ends in the engine too.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from llama import dialog
from llama.agents.limits import AgentError, Run
from llama.checkpoint.info import read_facts
from llama.dialog import Message
from llama.generation import Chunk, Llama
from llama.serving.answers import ChatAnswer, ChatDelta, ChatRequest, whole_message
from llama.serving.registry import ModelRegistry
from llama.tool_calls import TextDelta

_MAX_ERROR = 300  # characters of another server's error
_MAX_REPLY = 2**24  # bytes of another server's answer
# What other servers know of `SamplingOptions`.
_REMOTE_SETTINGS = (
    "temperature top_p seed stop frequency_penalty presence_penalty top_k min_p repetition_penalty"
).split()


@dataclass(frozen=True)
class Reply:
    """A message of the assistant, and what it cost."""

    message: Message
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatModel(Protocol):
    """What answers a dialog. `name` is the model's."""

    @property
    def name(self) -> str: ...

    def num_parameters(self) -> int | None:
        """How large it is; None where that is not known."""

    def max_model_len(self) -> int | None:
        """The most tokens of a prompt and its answer; None where that is not known."""

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[dialog.Tool],
        run: Run,
        *,
        max_tokens: int,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        """The next message. New text goes to `run.on_text` as it comes.

        Raises AgentError where another machine has no answer, InputError for a dialog that the
        model can't be asked.
        """


@dataclass(frozen=True)
class LocalModel:
    """A `Llama`, for one caller: `Llama.chat_completion_stream` in a thread."""

    llama: Llama
    name: str = "llama"

    def num_parameters(self) -> int | None:
        return sum(parameter.numel() for parameter in self.llama.model.parameters())

    def max_model_len(self) -> int | None:
        return self.llama.engine.max_seq_len

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[dialog.Tool],
        run: Run,
        *,
        max_tokens: int,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        content, calls, reason = "", [], "stop"
        async with aclosing(self._chunks(messages, tools, max_tokens, settings)) as chunks:
            async for chunk in chunks:
                content += chunk.text
                calls += chunk.tool_calls
                reason = chunk.finish_reason or reason
                if chunk.text and run.on_text is not None:
                    run.on_text(chunk.text)
        message: Message = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = calls
        prompt = self.llama.formatter.encode_dialog_prompt(messages, [*tools])
        written = content + "".join(str(call["function"]) for call in calls)
        return Reply(message, reason, len(prompt), len(self.llama.tokenizer.encode(written)) + 1)

    async def _chunks(
        self,
        messages: Sequence[Message],
        tools: Sequence[dialog.Tool],
        max_tokens: int,
        settings: Mapping[str, Any],
    ) -> Any:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        ended = threading.Event()

        def put(item: Chunk | BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(chunks.put_nowait, item)

        def work() -> None:
            options: Any = {**settings, **({"tools": tools} if tools else {})}
            try:
                stream = self.llama.chat_completion_stream(
                    [messages], max_gen_len=max_tokens, **options
                )
                for chunk in stream:
                    put(chunk)
                    if ended.is_set():
                        break
                stream.close()  # type: ignore[attr-defined]
                put(None)
            except BaseException as error:  # is raised where the chunks are taken
                put(error)

        threading.Thread(target=work, name="agent's model", daemon=True).start()
        try:
            while (item := await chunks.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()


@dataclass(frozen=True)
class ServedChatModel:
    """A model of a server's registry: all agents of a server share its engine."""

    models: ModelRegistry
    name: str

    def num_parameters(self) -> int | None:
        return read_facts(self.models.find(self.name).folder).parameters()

    def max_model_len(self) -> int | None:
        return self.models.max_model_len(self.name)

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[dialog.Tool],
        run: Run,
        *,
        max_tokens: int,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        request = ChatRequest([*messages], dict(settings), max_tokens, tools=[*tools])
        deltas: list[ChatDelta] = []
        async with self.models.use(self.name) as served:
            answer = await asyncio.to_thread(ChatAnswer, served, request)
            async with aclosing(answer.deltas()) as stream:
                async for delta in stream:
                    deltas.append(delta)
                    for event in delta.events:
                        if isinstance(event, TextDelta) and run.on_text is not None:
                            run.on_text(event.text)
        whole, usage = whole_message(deltas), answer.usage
        message: Message = {"role": "assistant", "content": whole.text}
        if whole.tool_calls:
            message["tool_calls"] = whole.tool_calls
        return Reply(message, whole.finish_reason, usage.prompt_tokens, usage.completion_tokens)


@dataclass(frozen=True)
class RemoteModel:
    """A model of any server with OpenAI's chat completions; `url` ends before /chat/completions."""

    url: str
    name: str
    api_key: str | None = field(default=None, repr=False)

    def num_parameters(self) -> int | None:
        return None

    def max_model_len(self) -> int | None:
        return None

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[dialog.Tool],
        run: Run,
        *,
        max_tokens: int,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        if unknown := sorted(settings.keys() - set(_REMOTE_SETTINGS)):
            raise AgentError(f"{self.name} at {self.url} is not asked with {unknown[0]}", 400)
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [_openai_message(message) for message in messages],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        if tools:
            body["tools"] = [*tools]
        where = f"{self.name} at {self.url}"
        content, reason = "", "stop"
        usage: dict[str, Any] = {}
        calls: dict[int, dict[str, str]] = {}
        async for chunk in self._events(body, run, where):
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                if text := delta.get("content"):
                    content += text
                    if run.on_text is not None:
                        run.on_text(text)
                for part in delta.get("tool_calls") or ():
                    call = calls.setdefault(part.get("index", 0), {"name": "", "arguments": ""})
                    call["id"] = part.get("id") or call.get("id", "")
                    function = part.get("function") or {}
                    call["name"] += function.get("name") or ""
                    call["arguments"] += function.get("arguments") or ""
                reason = choice.get("finish_reason") or reason
        message: Message = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [
                {
                    "id": call["id"] or f"call_{number}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for number, call in sorted(calls.items())
            ]
        counts = (usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
        return Reply(message, reason, *counts)

    async def _events(
        self, body: dict[str, Any], run: Run, where: str
    ) -> AsyncIterator[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        size = 0
        try:
            async with (
                httpx.AsyncClient(timeout=max(run.seconds_left, 0.001), headers=headers) as client,
                client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=body) as r,
            ):
                if r.status_code != 200:
                    text = (await r.aread()).decode(errors="replace")[:_MAX_ERROR]
                    raise AgentError(f"{where} answered {r.status_code}: {text}")
                async for line in r.aiter_lines():
                    size += len(line)
                    if size > _MAX_REPLY:
                        raise AgentError(f"{where} answered with more than {_MAX_REPLY:,} bytes")
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        event = json.loads(data)
                        if not isinstance(event, dict) or event.get("error"):
                            raise AgentError(f"{where} failed: {data[:_MAX_ERROR]}")
                        yield event
        except httpx.TimeoutException:
            raise AgentError(f"{where} did not answer in time", 504) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AgentError(f"{where} can't be asked: {error or type(error).__name__}") from None
        except json.JSONDecodeError as error:
            raise AgentError(f"{where} answered what is no JSON: {error}") from None


def _openai_message(message: Message) -> dict[str, Any]:
    """A message as OpenAI's servers take it: they know no error, and no result without a call."""
    if message["role"] not in ("tool", "ipython"):
        return {**message}
    content = message["content"]
    if message.get("is_error"):
        content = json.dumps({"error": content}, ensure_ascii=False)
    if "tool_call_id" not in message:
        return {"role": "user", "content": content}
    return {"role": "tool", "content": content, "tool_call_id": message["tool_call_id"]}


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a request that an agent's model may be asked with.

    Raises AgentError for what only a single answer of a model can have.
    """
    kept = dict(settings)
    if kept.pop("n", 1) != 1:
        raise AgentError("n: an agent gives one answer", 400)
    for name in ("top_logprobs", "grammar"):
        if kept.pop(name, None) is not None:
            raise AgentError(f"{name}: the answers of an agent have none", 400)
    return kept
