"""A team's agents as the tools of an MCP server, at /mcp of the same port.

Each agent is a tool with one argument, the question. Needs the package `mcp`.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from llama.agents.limits import AgentError
from llama.agents.team import Team
from llama.errors import InputError
from llama.serving.http_errors import HttpError


def mcp_server(team: Team) -> Any | None:
    """The server (`mcp.server.MCPServer`); None where `mcp` is not installed."""
    try:
        from mcp.server import MCPServer
    except ImportError:
        return None
    server: Any = MCPServer("llama agents", log_level="WARNING")
    for name, agent in team.agents.items():
        description = agent.description or f"Asks the agent {name}"
        server.add_tool(_asking(team, name), name=name, description=description)
    return server


def _asking(team: Team, name: str) -> Callable[[str], Awaitable[str]]:
    from mcp.server.mcpserver.exceptions import ToolError

    async def ask(question: str) -> str:
        try:
            run = team.start(name)
            return (await team.answer(name, [{"role": "user", "content": question}], run)).text
        except (AgentError, HttpError, InputError) as error:
            raise ToolError(str(error)) from error

    return ask
