"""Tools of MCP servers (https://modelcontextprotocol.io), over HTTP or the streams of a process.

    async with mcp_tools("http://127.0.0.1:9000/mcp") as tools:
        agent = Agent("helper", model, tools=tools)
    async with mcp_tools(["python", "server.py"]) as tools: ...

The connection, and the process, last as long as the context. A tool that its server does not call
read-only has side effects. Results are marked as data, as all that others wrote. Needs the package
`mcp`: pip install 'llama[agents]'.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llama.agents.function_tools import Tool, ToolError, tool_definition
from llama.agents.limits import Run
from llama.errors import InputError

_MAX_TOOLS = 200
_SECONDS = 30  # to connect, and to list the tools


@asynccontextmanager
async def mcp_tools(
    server: str | Sequence[str], folder: str | Path | None = None
) -> AsyncIterator[list[Tool]]:
    """The tools of a server: by its URL, or by the command that starts it, in `folder`.

    Raises InputError where the server can't be reached, or `mcp` is not installed.
    """
    client = _client(server, folder)
    shown = server if isinstance(server, str) else " ".join(server)
    try:
        await client.__aenter__()
        try:
            tools = await _list(client, shown)
        except BaseException:
            await client.__aexit__(None, None, None)
            raise
    except InputError:
        raise
    except Exception as error:  # of the transport: they differ, and some are groups
        raise InputError(f"the MCP server {shown} can't be used: {_reason(error)}") from error
    try:
        yield tools
    finally:
        await client.__aexit__(None, None, None)


def _client(server: str | Sequence[str], folder: str | Path | None) -> Any:
    try:
        from mcp import Client, StdioServerParameters
    except ImportError:
        raise InputError("tools of MCP servers need mcp: pip install 'llama[agents]'") from None
    if isinstance(server, str):
        return Client(server, read_timeout_seconds=_SECONDS)
    if not server:
        raise InputError("an MCP server needs a command")
    command, *arguments = server
    parameters = StdioServerParameters(command=command, args=arguments, cwd=folder)
    return Client(parameters, read_timeout_seconds=_SECONDS)


async def _list(client: Any, shown: str) -> list[Tool]:
    tools: list[Tool] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += [_tool(client, described) for described in page.tools]
        cursor = page.next_cursor
        if len(tools) > _MAX_TOOLS:
            raise InputError(f"the MCP server {shown} has more than {_MAX_TOOLS} tools")
        if not cursor:
            return tools


def _tool(client: Any, described: Any) -> Tool:
    async def call(arguments: dict[str, Any], run: Run) -> str:
        result = await client.call_tool(
            described.name, arguments, read_timeout_seconds=max(run.seconds_left, 0.001)
        )
        texts = []
        for part in result.content:
            if part.type != "text":
                raise ToolError(f"{described.name} returned {part.type}; only text can be read")
            texts.append(part.text)
        if result.is_error:
            raise ToolError("\n".join(texts) or f"{described.name} failed")
        return "\n".join(texts)

    hints = described.annotations
    name = re.sub(r"[^\w./:-]", "_", described.name, flags=re.ASCII)
    definition = tool_definition(name, described.description or name, described.input_schema)
    return Tool(definition, call, side_effects=not (hints and hints.read_only_hint))


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
