"""Agents over HTTP: a question goes in, and what the agent answers comes back.

    POST /chat {"intent": "..."} -> {"response": "..."}
    POST /integrate {"task": "..."} -> {"response": "..."}

Both ask the agent that leads the team; /agents/NAME/chat and /agents/NAME/integrate ask another.
Instead of the question there may be `messages`; `conversation` goes on with a dialog that the
server keeps, `stream` has events, `trace` the steps. `AgentAnswer` makes an agent a model of
every dialect's chats.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from llama.agents.agent import Outcome
from llama.agents.agent_models import checked_settings
from llama.agents.experts import HOPS_HEADER, SECONDS_HEADER
from llama.agents.limits import AgentError, Run
from llama.agents.team import Team
from llama.agents.traces import Trace
from llama.dialog import Message
from llama.serving.answers import ChatDelta, ChatMessage, ChatRequest, Usage, whole_message
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.openai_chat import InputMessage
from llama.serving.wire import StrictModel, server_sent_event, stream, while_connected
from llama.tool_calls import TextDelta

_MAX_PATH = 100  # agents in a header

T = TypeVar("T")


class QuestionFields(StrictModel):
    """What both bodies have: messages instead of the question, and how the answer comes."""

    messages: list[InputMessage] | None = Field(None, min_length=1)
    conversation: str | None = None
    stream: bool = False
    trace: bool = False


class ChatBody(QuestionFields):
    """The body of POST /chat."""

    intent: str | None = None


class IntegrateBody(QuestionFields):
    """The body of POST /integrate."""

    task: str | None = None


def routes(team: Team) -> APIRouter:
    """The routes of a team's agents."""
    router = APIRouter(tags=["agents"])

    async def respond(request: Request, name: str, body: QuestionFields, key: str) -> Response:
        with http_errors():
            messages = _messages(body, key)
            run = _run(team, request, name)
        if body.stream:
            return await stream(request, _events(team, name, messages, body, run))
        answering = _answer(team, name, messages, body, run)
        return JSONResponse(await while_connected(request, answering))

    @router.post("/chat")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Asks the agent that leads the team."""
        return await respond(request, team.entry, body, "intent")

    @router.post("/integrate")
    async def integrate(body: IntegrateBody, request: Request) -> Response:
        """Gives the agent that leads the team a task."""
        return await respond(request, team.entry, body, "task")

    @router.post("/agents/{name}/chat")
    async def chat_with(name: str, body: ChatBody, request: Request) -> Response:
        """Asks one agent."""
        return await respond(request, name, body, "intent")

    @router.post("/agents/{name}/integrate")
    async def integrate_with(name: str, body: IntegrateBody, request: Request) -> Response:
        """Gives one agent a task."""
        return await respond(request, name, body, "task")

    @router.get("/agents")
    async def list_agents() -> JSONResponse:
        """Who is there."""
        return JSONResponse(
            {
                "entry": team.entry,
                "agents": [
                    {"name": name, "description": agent.description}
                    for name, agent in team.agents.items()
                ],
            }
        )

    return router


@contextlib.contextmanager
def http_errors() -> Iterator[None]:
    """Turns an agent's error into one of HTTP."""
    try:
        yield
    except AgentError as error:
        raise HttpError(error.status, str(error)) from error


def _messages(body: QuestionFields, key: str) -> list[Message]:
    question = getattr(body, key)
    if (question is None) is (body.messages is None):
        raise HttpError(400, f"give either {key} or messages", param=key)
    if body.messages is not None:
        return [message.message(i) for i, message in enumerate(body.messages)]
    if not question.strip():
        raise HttpError(400, f"{key}: it is empty", param=key)
    return [{"role": "user", "content": question}]


def _run(team: Team, request: Request, name: str) -> Run:
    """The question's path and deadline, those of another machine that asks among them."""
    path = [part.strip() for part in request.headers.get(HOPS_HEADER, "").split(",")]
    run = team.start(name, [part[:64] for part in path if part][:_MAX_PATH])
    if (written := request.headers.get(SECONDS_HEADER)) is None:
        return run
    try:
        seconds = float(written)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise AgentError(f"{SECONDS_HEADER}: {written[:50]!r} is no number of seconds", 400)
    return run.within(seconds)


async def _answer(
    team: Team, name: str, messages: list[Message], body: QuestionFields, run: Run
) -> dict[str, Any]:
    with http_errors():
        outcome = await team.answer(name, messages, run, conversation=body.conversation)
    response: dict[str, Any] = {"response": outcome.text}
    if body.conversation is not None:
        response["conversation"] = body.conversation
    if outcome.refusals:
        response["refused"] = [{"tool": name, "arguments": a} for name, a in outcome.refusals]
    if outcome.errors:
        response["errors"] = outcome.errors
    if outcome.is_cut:
        response["is_cut"] = True
    if body.trace:
        response["trace"] = run.trace.steps
    return response


async def _events(
    team: Team, name: str, messages: list[Message], body: QuestionFields, run: Run
) -> AsyncGenerator[str, None]:
    """The steps of a trace, the pieces of the answer, and the whole response."""

    def answering(put: Callable[[dict[str, Any]], None]) -> Awaitable[dict[str, Any]]:
        def on_step(step: dict[str, Any]) -> None:
            if body.trace:
                put({"step": step})

        trace = Trace(team.trace_file, on_step)
        watched = replace(run, trace=trace, on_text=lambda text: put({"delta": text}))
        return _answer(team, name, messages, body, watched)

    async with aclosing(watch(answering)) as events:
        async for event in events:
            yield server_sent_event(event)


async def watch(
    answering: Callable[[Callable[[Any], None]], Awaitable[Any]],
) -> AsyncGenerator[Any, None]:
    """What a coroutine puts while it runs, and its result, which is the last item.

    A consumer that stops early cancels it.
    """
    items: asyncio.Queue[Any] = asyncio.Queue()
    end = object()
    task = asyncio.ensure_future(answering(items.put_nowait))
    task.add_done_callback(lambda _: items.put_nowait(end))
    try:
        while (item := await items.get()) is not end:
            yield item
        yield task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class AgentAnswer:
    """An agent's answer to a chat of any dialect, as `llama.serving.answers.Answer`.

    Raises HttpError for what an agent's answer can't have.
    """

    tokenizer = None

    def __init__(self, team: Team, name: str, request: ChatRequest) -> None:
        self._team, self._name, self._request = team, name, request
        if request.tools or request.builtin_tools:
            raise HttpError(400, f"tools: {name} is an agent, and has its own", param="tools")
        if request.continue_final_message:
            raise HttpError(400, f"continue_final_message: {name} is an agent, and begins itself")
        with http_errors():
            self._settings = checked_settings(request.settings)
            self._run = team.start(name)
        self._outcome: Outcome | None = None

    @property
    def usage(self) -> Usage:
        """The tokens of all models' answers that this one took."""
        if self._outcome is None:
            return Usage(0, 0, 0)
        return Usage(self._outcome.prompt_tokens, self._outcome.completion_tokens, 0)

    @property
    def times(self) -> Mapping[str, float]:
        """None: other machines may have answered."""
        return {}

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        """Asks the agent."""

        async def answering(put: Callable[[str], None]) -> Outcome:
            options: dict[str, Any] = {}
            if self._settings:
                options["settings"] = self._settings
            if self._request.max_tokens is not None:
                options["max_tokens"] = self._request.max_tokens
            with http_errors():
                return await self._team.answer(
                    self._name, self._request.messages, replace(self._run, on_text=put), **options
                )

        async with aclosing(watch(answering)) as events:
            async for event in events:
                if isinstance(event, Outcome):
                    self._outcome = event
                    yield ChatDelta(0, [], [], "length" if event.is_cut else "stop")
                else:
                    yield ChatDelta(0, [TextDelta(event)], [], None)

    async def messages(self) -> list[ChatMessage]:
        """The whole answer."""
        return [whole_message([delta async for delta in self.deltas()])]
