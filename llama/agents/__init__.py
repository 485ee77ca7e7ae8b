"""Agents: models with a role and tools, alone or as a team that asks each other over HTTP.

`traces` and `limits` are what every run has. `function_tools` makes tools of functions;
`builtin_tools`, `web_fetch` and `mcp_tools` are some. `agent_models` are what agents ask, and
`agent` is the loop. `experts` are agents that others ask, `conversations` keep dialogs, `team` puts
agents together and `team_file` reads one. `agent_routes`, `a2a_routes` and `mcp_server` are its
doors, `agent_app` the application, `agents_command` is `llama agents`.
"""

from llama.agents.agent import Agent, Outcome
from llama.agents.agent_app import create_app, team_app
from llama.agents.agent_models import ChatModel, LocalModel, RemoteModel, Reply, ServedChatModel
from llama.agents.builtin_tools import calculator, clock, retrieval_tool
from llama.agents.conversations import Conversations
from llama.agents.experts import Coordinator, Expert, RemoteAgent
from llama.agents.function_tools import Tool, ToolError, tool
from llama.agents.limits import AgentError, Limits, Run
from llama.agents.mcp_tools import mcp_tools
from llama.agents.team import Team
from llama.agents.team_file import read_team
from llama.agents.traces import Trace
from llama.agents.web_fetch import fetch

__all__ = [
    "Agent",
    "AgentError",
    "ChatModel",
    "Conversations",
    "Coordinator",
    "Expert",
    "Limits",
    "LocalModel",
    "Outcome",
    "RemoteAgent",
    "RemoteModel",
    "Reply",
    "Run",
    "ServedChatModel",
    "Team",
    "Tool",
    "ToolError",
    "Trace",
    "calculator",
    "clock",
    "create_app",
    "fetch",
    "mcp_tools",
    "read_team",
    "retrieval_tool",
    "team_app",
    "tool",
]
