"""A team: agents by name, the models that they share, and the dialogs they have.

    team = Team({"lawyer": agent, ...}, entry="lawyer")
    async with team.running():
        outcome = await team.answer("lawyer", [{"role": "user", "content": "..."}])

`read_team` (in `team_file`) makes one of a TOML file, `team_app` serves it.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama.agents.agent import Agent, Outcome
from llama.agents.agent_models import ServedChatModel
from llama.agents.conversations import Conversations
from llama.agents.experts import Expert
from llama.agents.function_tools import Tool
from llama.agents.limits import AgentError, Limits, Run
from llama.agents.mcp_tools import mcp_tools
from llama.agents.traces import Trace
from llama.dialog import Message
from llama.errors import InputError
from llama.serving.registry import ModelRegistry


class Team:
    """Agents of a server.

    agents: by name; those of other machines are `RemoteAgent`s.
    entry: the name of the one that is asked unless another one is named.
    models: the models that they share, in one engine each.
    mcp_servers: by name, the URL or the command of a server.
    mcp_folder: where commands are run.
    mcp_users: for each agent, the names of the servers whose tools it gets.
    trace_file: gets a line for each step of each question.
    """

    def __init__(
        self,
        agents: Mapping[str, Expert],
        entry: str,
        models: ModelRegistry | None = None,
        *,
        conversations: Conversations | None = None,
        mcp_servers: Mapping[str, str | Sequence[str]] | None = None,
        mcp_folder: str | Path | None = None,
        mcp_users: Mapping[str, Sequence[str]] | None = None,
        trace_file: str | Path | None = None,
    ) -> None:
        self.agents, self.entry = dict(agents), entry
        self.models = models or ModelRegistry({})
        self.conversations = conversations or Conversations()
        self.trace_file = trace_file
        Trace(trace_file)  # an error now, and not with the first question
        self._mcp_servers, self._mcp_folder = mcp_servers or {}, mcp_folder
        self._mcp_users = mcp_users or {}
        if both := sorted(self.agents.keys() & self.models.names.keys()):
            raise InputError(f"an agent and a model have the same name, {both[0]!r}")

    def agent(self, name: str) -> Expert:
        """An agent by its name. Raises AgentError 404 for one that there is not."""
        if name not in self.agents:
            names = ", ".join(self.agents)
            raise AgentError(f"there is no agent {name[:100]!r}; there are {names}", 404)
        return self.agents[name]

    @property
    def local(self) -> dict[str, Agent]:
        """The agents that run here."""
        return {name: agent for name, agent in self.agents.items() if isinstance(agent, Agent)}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connects to the MCP servers whose tools agents have, until the context ends.

        Raises InputError where one can't be used.
        """
        async with contextlib.AsyncExitStack() as stack:
            tools: dict[str, list[Tool]] = {}
            for name, server in self._mcp_servers.items():
                tools[name] = await stack.enter_async_context(mcp_tools(server, self._mcp_folder))
            own = {name: dict(agent.tools) for name, agent in self.local.items()}
            try:
                for name, servers in self._mcp_users.items():
                    self.local[name].add_tools(tool for s in servers for tool in tools[s])
                yield
            finally:
                for name, agent in self.local.items():
                    agent.tools = own[name]

    async def warm(self) -> None:
        """Loads the models, and computes the beginning of each agent's prompts.

        The prefix store has it from then on. Raises InputError for a model or a setting that there
        is not.
        """
        for agent in self.local.values():
            if isinstance(agent.model, ServedChatModel):
                dialog = agent.dialog([{"role": "user", "content": "?"}])
                await agent.reply(dialog, Run.starting(agent.limits), [], 1, agent.settings)

    def start(self, name: str, path: Sequence[str] = (), **options: Any) -> Run:
        """A question to an agent: its deadline, and its trace.

        path: names of the agents that it passed on other machines.
        """
        agent = self.agent(name)
        options.setdefault("trace", Trace(self.trace_file))
        limits = agent.limits if isinstance(agent, Agent) else Limits()
        return Run.starting(limits, path=tuple(path), **options)

    async def answer(
        self,
        name: str,
        messages: Sequence[Message],
        run: Run | None = None,
        *,
        conversation: str | None = None,
        **options: Any,
    ) -> Outcome:
        """The answer of an agent to a dialog, or to a question that goes on with a conversation.

        The options are those of `Agent.answer`. Raises as that does, and AgentError 404 for an
        agent that there is not.
        """
        agent, run = self.agent(name), run or self.start(name)
        if not isinstance(agent, Agent):
            if conversation is not None:
                raise AgentError(f"{name} is elsewhere, and keeps no conversations here", 400)
            if options:
                text = f"{name} is elsewhere, and takes no {' and no '.join(options)}"
                raise AgentError(text, 400)
            return await agent.answer(messages, run)
        if conversation is None:
            return await agent.answer(messages, run, **options)
        if len(messages) != 1:
            raise AgentError("a conversation goes on with one question, not with messages", 400)
        async with self.conversations.open(conversation, agent) as state:
            question = messages[0]
            dialog = await state.dialog(question["content"], run)
            outcome = await agent.answer(dialog, run, **options)
            state.add(question, {"role": "assistant", "content": outcome.text})
        return outcome

    def close(self) -> None:
        """Unloads the models, and closes the conversations."""
        self.models.close()
        self.conversations.close()


class Member:
    """An agent of a team, as an expert of another one; both may be each other's."""

    def __init__(self, agents: Mapping[str, Expert], name: str, description: str) -> None:
        self._agents, self.name, self.description = agents, name, description

    async def answer(self, messages: Sequence[Message], run: Run | None = None) -> Outcome:
        """See `Expert`."""
        return await self._agents[self.name].answer(messages, run)
