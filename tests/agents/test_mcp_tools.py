"""Tools of a real MCP server, over its standard streams and over HTTP."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import Scripted, call, needs

from llama import InputError
from llama.agents import Agent, Limits, Team, mcp_tools

pytestmark = needs("mcp")

FOLDER = Path(__file__).parent
SERVER = [sys.executable, str(FOLDER / "mcp_calculator.py")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*SERVER, str(port)])
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["streams", "http"])
def test_its_tools_are_called(kind: str, url: str) -> None:
    calls = [call("add", {"a": 1, "b": 2}), call("fail"), call("delete_all")]
    calls += [call("hang")] if kind == "http" else []  # its process would be waited for
    model = Scripted(calls, "It is 3.")

    async def run() -> None:
        async with mcp_tools(SERVER if kind == "streams" else url) as tools:
            names = {tool.name: tool.side_effects for tool in tools}
            assert names == {
                "add": False,
                "fail": False,
                "hang": False,
                "leave": False,
                "delete_all": True,
            }
            agent = Agent("helper", model, tools=tools, limits=Limits(tool_seconds=1))
            outcome = await agent.answer([{"role": "user", "content": "1 + 2?"}])
            assert outcome.text == "It is 3."
            assert outcome.refusals == [("delete_all", {})]
            assert "no luck" in outcome.errors["fail"]
            assert (kind == "http") is ("hang" in outcome.errors)

    asyncio.run(run())
    added = json.loads(model.asked[1][2]["content"])
    assert (added["tool"], added["result"]) == ("add", "3")


def test_a_server_that_dies_is_an_error_of_its_tool() -> None:
    model = Scripted([call("leave")], [call("add", {"a": 1, "b": 2})], "It is gone.")

    async def run() -> None:
        async with mcp_tools(SERVER) as tools:
            agent = Agent("helper", model, tools=tools, limits=Limits(tool_seconds=5))
            outcome = await agent.answer([{"role": "user", "content": "1 + 2?"}])
            assert outcome.text == "It is gone."
            assert outcome.errors.keys() == {"leave", "add"}

    asyncio.run(run())


def test_servers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(server: str | list[str]) -> None:
        async with mcp_tools(server):
            raise AssertionError

    for server, reason in [
        ("http://127.0.0.1:1/mcp", "the MCP server http://127.0.0.1:1/mcp can't be used"),
        (["/no/such/program"], "the MCP server /no/such/program can't be used"),
        ([sys.executable, "-c", "pass"], "can't be used"),
        ([], "needs a command"),
    ]:
        with pytest.raises(InputError, match=reason):
            asyncio.run(use(server))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(InputError, match=r"pip install 'llama\[agents\]'"):
        asyncio.run(use(SERVER))


def test_a_team_has_them_while_it_runs() -> None:
    agent = Agent("helper", Scripted("Yes."))
    team = Team(
        {"helper": agent},
        "helper",
        mcp_servers={"c": [sys.executable, "mcp_calculator.py"]},
        mcp_folder=FOLDER,
        mcp_users={"helper": ["c"]},
    )

    async def run() -> list[str]:
        async with team.running():
            return [*agent.tools]

    assert asyncio.run(run()) == ["add", "fail", "hang", "leave", "delete_all"]
    assert agent.tools == {}
