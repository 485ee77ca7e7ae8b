"""Agents that other agents ask: as tools, or all of them before one combines what they said.

    coordinator = Coordinator("coordinator", model, "You lead a team.", experts=[lawyer, engineer])
    coordinator.ask("How long does the contract run?").text

`mode="tools"` is the loop of `Agent`, with an expert behind each tool: the model chooses whom to
ask and what. `mode="ask_all"` asks every expert the user's own question and has the model combine
the answers, which a model that is too small to choose can do. The default follows the size.
An expert that is dead, slow or part of a circle is an error that the coordinator answers without.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import httpx

from llama.agents.agent import Agent, Outcome, Said
from llama.agents.agent_models import ChatModel
from llama.agents.function_tools import Tool, ToolError, tool_definition
from llama.agents.limits import AgentError, Run
from llama.dialog import Message
from llama.errors import InputError
from llama.serving.http_errors import HttpError

SMALL = 8_000_000_000  # parameters; below that a model combines instead of choosing
HOPS_HEADER = "Agent-Path"  # names of the agents that a question passed, with commas
SECONDS_HEADER = "Agent-Seconds"  # how long the one who asks will wait
COMBINE = "Answer from these passages.\n\n{answers}\n\nQuestion: {question}"
_MAX_ANSWER = 2**20  # bytes of another machine's answer

Mode = Literal["tools", "ask_all"]


class Expert(Protocol):
    """Whom a coordinator may ask: an `Agent`, or one on another machine."""

    name: str
    description: str

    async def answer(self, messages: Sequence[Message], run: Run | None = None) -> Outcome:
        """The answer to a dialog; raises AgentError where there is none."""


@dataclass
class RemoteAgent:
    """An agent of another server, that answers `POST {url}/chat` as this package's do.

    The path of the question and the seconds that are left go with it, as headers.
    """

    name: str
    url: str
    description: str = ""
    api_key: str | None = field(default=None, repr=False)

    async def answer(self, messages: Sequence[Message], run: Run | None = None) -> Outcome:
        run = run or Run.starting()
        run = run.through(self.name)
        where = f"{self.name} at {self.url}"
        body: dict[str, Any] = {"intent": messages[-1]["content"]}
        if len(messages) > 1:
            body = {"messages": [*messages]}
        with run.trace.step("invoke_agent", {"gen_ai.agent.name": self.name}, run.span) as step:
            step["server.address"] = self.url
            step["gen_ai.input.messages"] = messages[-1]["content"]
            seconds = run.seconds_left
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._post(body, run)
            except (TimeoutError, httpx.TimeoutException):
                raise AgentError(f"{where} had no answer after {seconds:.1f} s", 504) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise AgentError(f"{where} can't be asked: {reason}") from None
            response = answer.get("response") if isinstance(answer, dict) else None
            if not isinstance(response, str) or not response.strip():
                raise AgentError(f"{where} gave no response: {str(answer)[:200]}")
            step["gen_ai.output.messages"] = response
        if run.on_text is not None:
            run.on_text(response)
        return Outcome(response, run.trace)

    async def _post(self, body: dict[str, Any], run: Run) -> Any:
        headers = {
            # The name that the agent has there may be another; it adds that itself.
            HOPS_HEADER: ",".join(run.path[:-1]),
            SECONDS_HEADER: f"{run.seconds_left:.3f}",
        }
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = f"{self.url.rstrip('/')}/chat"
        async with (
            httpx.AsyncClient(timeout=None, headers=headers) as client,  # the caller has a deadline
            client.stream("POST", url, json=body) as response,
        ):
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > _MAX_ANSWER:
                    raise AgentError(f"{self.name} at {self.url} answered more than 1 MiB")
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if response.status_code != 200:
            error = answer.get("error") if isinstance(answer, dict) else None
            reason = error.get("message") if isinstance(error, dict) else None
            text = str(reason or data.decode(errors="replace"))[:300]
            status = response.status_code
            raise AgentError(
                f"{self.name} at {self.url} answered {status}: {text}",
                status if status in (504, 508) else 502,
            )
        return answer


def expert_tool(expert: Expert) -> Tool:
    """An expert as a tool, whose one argument is the question."""
    question = {"type": "string", "description": "What to ask, with all that is needed to answer"}
    parameters = {"type": "object", "properties": {"question": question}, "required": ["question"]}
    description = expert.description or f"Asks {expert.name}"

    async def call(arguments: dict[str, Any], run: Run) -> str:
        text = arguments.get("question")
        if not isinstance(text, str) or not text.strip():
            raise ToolError("wrong arguments: question has to be a text")
        try:
            return (await expert.answer([{"role": "user", "content": text}], run)).text
        except (AgentError, HttpError, InputError) as error:
            raise ToolError(str(error)) from error

    return Tool(tool_definition(expert.name, description, parameters), call)


class Coordinator(Agent):
    """An agent that asks experts; see the module.

    mode: None follows the size of the model.
    combine: the question with the experts' answers, where it asks all of them: a text with
        {answers} and {question}.
    tools: more of them, in the mode "tools".
    """

    def __init__(
        self,
        name: str,
        model: ChatModel,
        seed_memory: str = "",
        *,
        experts: Sequence[Expert],
        mode: Mode | None = None,
        combine: str = COMBINE,
        tools: Sequence[Tool] = (),
        **options: Any,
    ) -> None:
        super().__init__(
            name,
            model,
            seed_memory,
            tools=[*tools, *(expert_tool(expert) for expert in experts)],
            **options,
        )
        if mode is not None and mode not in get_args(Mode):
            raise InputError(f"{name}: mode is {' or '.join(get_args(Mode))}, not {mode!r:.60}")
        for part in ("{answers}", "{question}"):
            if part not in combine:
                raise InputError(f"{name}: combine has no {part}, got {combine!r:.80}")
        self.experts, self._mode, self.combine = experts, mode, combine

    @property
    def mode(self) -> Mode:
        """How experts are asked."""
        if self._mode is not None:
            return self._mode
        size = self.model.num_parameters()
        return "ask_all" if size is not None and size < SMALL else "tools"

    async def _answer(
        self,
        dialog: list[Message],
        run: Run,
        said: Said,
        outcome: Outcome,
        tokens: int,
        settings: Mapping[str, Any],
    ) -> None:
        if self.mode == "tools" or not self.experts:
            await super()._answer(dialog, run, said, outcome, tokens, settings)
            return
        messages = [message for message in dialog if message["role"] in ("user", "assistant")]
        asked = replace(run.within(run.at_most(run.seconds_left)), on_text=None)
        answers = await asyncio.gather(*(self._ask(e, messages, asked) for e in self.experts))
        texts: list[str] = []
        for expert, answer in zip(self.experts, answers, strict=True):
            if isinstance(answer, Outcome):
                texts.append(f"[{len(texts) + 1}] {answer.text.strip()}")
                outcome.prompt_tokens += answer.prompt_tokens
                outcome.completion_tokens += answer.completion_tokens
                outcome.refusals += answer.refusals
            else:
                outcome.errors[expert.name] = str(answer)
        if not texts:
            reasons = "; ".join(f"{name}: {why}" for name, why in outcome.errors.items())
            status = min(getattr(answer, "status", 502) for answer in answers)
            raise AgentError(f"no expert had an answer. {reasons}", status)
        parts = {"{question}": dialog[-1]["content"], "{answers}": "\n".join(texts)}
        combined = re.sub("|".join(map(re.escape, parts)), lambda m: parts[m[0]], self.combine)
        dialog[-1] = {"role": "user", "content": combined}
        watched = replace(run, on_text=said.begin(holds_calls=False))
        reply = await self.reply(dialog, watched, [], tokens, settings)
        outcome.add(reply)
        outcome.is_cut = reply.finish_reason == "length"
        if not reply.message["content"].strip():
            raise AgentError(f"{self.name} gave an empty answer")
        for name, why in outcome.errors.items():
            said.begin(holds_calls=False)(f"[{name}: {why}]")
        said.end(keeps_held=True)

    async def _ask(
        self, expert: Expert, messages: list[Message], run: Run
    ) -> Outcome | AgentError | HttpError | InputError:
        """What an expert answers, or why it does not."""
        try:
            return await expert.answer(messages, run)
        except (AgentError, HttpError, InputError) as error:
            return error
