"""The ASGI application of agents, beside the routes of `llama serve` for the models they share.

    app = create_app("You are a lawyer. Answer in one sentence.", "llama3:8b")
    uvicorn.run(app)                                   # POST /chat {"intent": "..."}

`team_app` serves a team; each agent is also a model of every dialect's chats.
"""

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from llama.agents import a2a_routes, agent_routes
from llama.agents.agent import Agent
from llama.agents.agent_models import ChatModel, ServedChatModel
from llama.agents.agent_routes import AgentAnswer
from llama.agents.conversations import Conversations
from llama.agents.experts import Coordinator, Expert
from llama.agents.mcp_server import mcp_server
from llama.agents.team import Team
from llama.errors import InputError
from llama.serving import app as serving_app
from llama.serving.lifecycle import Lifecycle
from llama.serving.middleware import Hosts
from llama.serving.registry import ModelRegistry
from llama.storage.files import expand


def create_app(
    seed_memory: str,
    model: str | Path | ChatModel | None = None,
    *,
    name: str = "agent",
    experts: Sequence[Expert] = (),
    conversations: Conversations | None = None,
    trace_file: str | Path | None = None,
    hosts: Sequence[str] = (),
    **options: Any,
) -> FastAPI:
    """An application of one agent.

    seed_memory: its role, the system prompt.
    model: a folder, a pulled model, or what `llama.agents.agent_models` has; None for the one that
        LLAMA_AGENTS_MODEL names.
    experts: agents that it asks; it is a `Coordinator` then.
    hosts: names by which it may be called, besides those of this machine.
    options: of `Agent`, or of `Coordinator`.
    """
    model = model or os.environ.get("LLAMA_AGENTS_MODEL")
    if model is None:
        raise InputError("name a model: create_app(seed_memory, model), or set LLAMA_AGENTS_MODEL")
    models = ModelRegistry({})
    if isinstance(model, str | Path):
        folder = expand(model)
        model_name = Path(folder).resolve().name if Path(folder).exists() else str(model)
        models = ModelRegistry({model_name: folder}, keep_alive=-1)
        model = ServedChatModel(models, model_name)
    if experts:
        agent: Agent = Coordinator(name, model, seed_memory, experts=experts, **options)
    else:
        agent = Agent(name, model, seed_memory, **options)
    agents: dict[str, Expert] = {name: agent, **{expert.name: expert for expert in experts}}
    team = Team(agents, name, models, conversations=conversations, trace_file=trace_file)
    return team_app(team, hosts=hosts)


def team_app(
    team: Team, lifecycle: Lifecycle | None = None, *, hosts: Sequence[str] = (), **options: Any
) -> FastAPI:
    """An application of a team.

    hosts: names by which it may be called, besides those of this machine; * is all.
    options: of `llama.serving.app.create_app`.
    """
    for name in team.agents:
        team.models.chats[name] = functools.partial(AgentAnswer, team, name)
    app = serving_app.create_app(team.models, lifecycle, **options)
    app.include_router(agent_routes.routes(team))
    app.include_router(a2a_routes.routes(team))
    app.add_middleware(Hosts, allowed=hosts)
    mcp = mcp_server(team)
    if mcp is not None:
        # The Host and the Origin are checked by this application's middleware.
        mounted = mcp.streamable_http_app(stateless_http=True, json_response=True, host="")
        app.router.routes += [route for route in mounted.routes if isinstance(route, Route)]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(team.running())
            if mcp is not None:
                await stack.enter_async_context(mcp.session_manager.run())
            yield

    app.router.lifespan_context = lifespan
    return app
