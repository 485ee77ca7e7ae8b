"""An MCP server for tests: over its standard streams, or with a port as its argument over HTTP."""

import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

server = MCPServer("calculator", log_level="ERROR")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def fail() -> str:
    """Raises."""
    raise ToolError("no luck")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def hang() -> str:
    """Takes too long."""
    time.sleep(3600)
    return ""


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def leave() -> str:
    """Ends the process."""
    os._exit(1)


@server.tool()
def delete_all() -> str:
    """Deletes everything."""
    return "gone"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
