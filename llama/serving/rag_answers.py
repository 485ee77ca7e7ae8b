"""Answers from an index of documents, by a served model.

    models.chats["rag:notes"] = functools.partial(RagAnswer, ServedIndex(models, "tiny", index))

An index works in a thread; what it asks of the model runs in the event loop, within the server's
limits, and ends when the client goes away.
"""

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from llama.engine.request import Sequence
from llama.retrieval.grounding import Answer
from llama.retrieval.index import Index
from llama.retrieval.passage_scores import Reader
from llama.serving.answers import (
    ChatDelta,
    ChatFinishReason,
    ChatMessage,
    ChatRequest,
    Usage,
    finish,
    stop_string,
    whole_message,
)
from llama.serving.http_errors import HttpError
from llama.serving.registry import ModelRegistry, ServedModel
from llama.tool_calls import TextDelta

T = TypeVar("T")


@dataclass(frozen=True)
class ServedIndex:
    """An index, and the name of the model that reads it."""

    models: ModelRegistry
    model: str
    index: Index

    async def use(self, work: Callable[[Index], T], requests: list[Sequence] | None = None) -> T:
        """What `work` returns for the index, in a thread; `requests` gets those that have run.

        Raises as `ModelRegistry.use`, and what `work` raises.
        """
        async with self.models.use(self.model) as served:
            runner = _Runner(
                served, asyncio.get_running_loop(), [] if requests is None else requests
            )
            index = self.index.read_by(Reader(served.llama, runner.run))
            try:
                return await asyncio.to_thread(work, index)
            finally:
                runner.stop()


class _Runner:
    """Lets a thread run requests in an event loop, until it is stopped."""

    def __init__(
        self, served: ServedModel, loop: asyncio.AbstractEventLoop, requests: list[Sequence]
    ) -> None:
        self._served, self._loop, self._requests = served, loop, requests
        self._running: concurrent.futures.Future[list[Sequence]] | None = None
        self._is_stopped = False

    def run(self, requests: list[Sequence]) -> None:
        """Runs requests to their ends, from the thread."""
        self._requests += requests
        self._running = asyncio.run_coroutine_threadsafe(finish(self._served, requests), self._loop)
        if self._is_stopped:
            self._running.cancel()
        self._running.result()

    def stop(self) -> None:
        """Ends what runs; the thread gets a CancelledError."""
        self._is_stopped = True
        if self._running is not None:
            self._running.cancel()


class RagAnswer:
    """The answer to a dialog's last question, with its sources; an `Answer` of `answers`.

    It comes as a whole, also in a stream: what supports a sentence is known at the end. It has as
    many tokens as the request allows, but at most half of the context: passages have the rest.
    Raises HttpError for a request for what it does not have: tools, several answers, a continued
    message, and JSON, since its sources are text.
    """

    tokenizer = None  # what is sent is more than the model's tokens

    def __init__(self, served: ServedIndex, request: ChatRequest) -> None:
        refused = {
            "tools": request.tools or request.builtin_tools,
            "n": request.settings.get("n", 1) != 1,
            "continue_final_message": request.continue_final_message,
            "format": "grammar" in request.settings,
        }
        for param, is_given in refused.items():
            if is_given:
                text = f"{param}: answers from documents have none of it; ask the model itself"
                raise HttpError(400, text, param=param, code="invalid_value")
        self._served, self._request = served, request
        self._requests: list[Sequence] = []

    @property
    def usage(self) -> Usage:
        """The counts of the answer and of all that was read to check it."""
        return Usage.of(self._requests)

    @property
    def times(self) -> Mapping[str, float]:
        """None: searching and checking take time too."""
        return {}

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        """Searches, answers and checks."""
        request = self._request
        settings = {k: v for k, v in request.settings.items() if k != "n"}

        def work(index: Index) -> Answer:
            limit = request.max_tokens
            if limit is not None:
                limit = min(limit, index.reader.llama.engine.max_seq_len // 2)
            return index.answer(request.messages, max_gen_len=limit, **settings)

        answer = await self._served.use(work, self._requests)
        reason: ChatFinishReason = "length" if answer.finish_reason == "length" else "stop"
        stopped_by = next(filter(None, map(stop_string, self._requests)), None)
        yield ChatDelta(0, [TextDelta(str(answer))], [], reason, stopped_by)

    async def messages(self) -> list[ChatMessage]:
        """Runs the request to its end."""
        async with aclosing(self.deltas()) as deltas:
            return [whole_message([delta]) async for delta in deltas]
