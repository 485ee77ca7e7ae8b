"""Models that say what a test wants, and servers of agents."""

import asyncio
import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import conftest as serving

from llama.agents import Reply, Run
from llama.dialog import Message, Tool, ToolCall

ROOT = Path(__file__).parents[2]
TINY = ROOT / "params" / "tiny"

# Agents have a startup, and some of these never answer.
running = functools.partial(serving.running, lifespan="auto", timeout_graceful_shutdown=1)


def call(name: str, arguments: object = None, id: str | None = None) -> ToolCall:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    made: ToolCall = {"type": "function", "function": {"name": name, "arguments": text}}
    return {"id": id or f"call_{name}", **made}


class Scripted:
    """Says one reply after the other: a text, or calls; the last one again and again."""

    name = "scripted"

    def __init__(
        self,
        *replies: str | list[ToolCall] | Callable[[Sequence[Message]], str],
        size: int = 10**10,
    ) -> None:
        self._replies, self._size = list(replies), size
        self.asked: list[list[Message]] = []
        self.offered: list[list[str]] = []
        self.max_tokens: list[int] = []
        self.settings: list[Mapping[str, Any]] = []
        self.tokens = 10  # of each reply
        self.context: int | None = None
        self.finish_reason = "stop"  # of the next text

    def num_parameters(self) -> int | None:
        return self._size

    def max_model_len(self) -> int | None:
        return self.context

    async def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        run: Run,
        *,
        max_tokens: int,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        await asyncio.sleep(0)  # others run meanwhile
        self.asked.append([*messages])
        self.offered.append([tool["function"]["name"] for tool in tools])
        self.max_tokens.append(max_tokens)
        self.settings.append(settings)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if callable(reply):
            reply = reply(messages)
        message: Message = {"role": "assistant", "content": ""}
        if isinstance(reply, list):
            message["tool_calls"] = reply
            return Reply(message, "tool_calls", 20, self.tokens)
        reason, self.finish_reason = self.finish_reason, "stop"
        for piece in (reply[:3], reply[3:]):
            if piece and run.on_text is not None:
                run.on_text(piece)
        message["content"] = reply
        return Reply(message, reason, 20, self.tokens)


class Hanging(Scripted):
    """Never answers."""

    async def ask(self, *args: Any, **options: Any) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")
