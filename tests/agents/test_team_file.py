"""Teams from TOML: every key, every error, the examples, and the command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import ROOT, TINY

from llama import InputError
from llama.agents import Agent, Coordinator, RemoteAgent, RemoteModel, ServedChatModel, read_team
from llama.retrieval import Index

WHOLE = """
model = "tiny"
limits = { steps = 3, seconds = 7.5 }
settings = { temperature = 0 }

[agents.lawyer]
description = "Knows the law"
seed_memory = "You are a lawyer."
tools = ["calculator", "clock", "fetch", "rag:notes.db", "mcp:files", "my_team_tools.py:ring"]
approved = ["ring"]
limits = { steps = 2 }
settings = { top_p = 0.5 }

[agents.far]
url = "http://far.example/agents/far"
api_key_env = "FAR_KEY"

[agents.lead]
model = { url = "http://far.example/v1", name = "large", api_key_env = "FAR_KEY" }
experts = ["lawyer", "far"]
mode = "ask_all"
combine = "{answers} {question}"

[mcp.files]
command = ["python", "server.py"]

[conversations]
file = "c.db"
window = 6
"""

TOOLS = """
from llama.agents import tool

@tool(side_effects=True)
def ring() -> str:
    \"\"\"Rings.\"\"\"

def plain(x: int) -> int:
    \"\"\"Plain.\"\"\"

silent = lambda: 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").symlink_to(TINY)
    (tmp_path / "my_team_tools.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAR_KEY", "secret")
    with Index.open(tmp_path / "notes.db") as index:
        index.add({"memo": "The museum opens at 10:15."})
    return tmp_path


def test_every_key(folder: Path) -> None:
    (folder / "team.toml").write_text(WHOLE)
    team = read_team(folder / "team.toml")
    assert team.entry == "lead"
    assert [*team.models.names] == ["tiny"]
    lawyer, far, lead = team.agents.values()
    assert isinstance(lawyer, Agent)
    assert lawyer.model == ServedChatModel(team.models, "tiny")
    assert lawyer.description == "Knows the law"
    assert [*lawyer.tools] == ["calculator", "clock", "fetch", "search_documents", "ring"]
    assert (lawyer.limits.steps, lawyer.limits.seconds) == (2, 7.5)
    assert lawyer.settings == {"temperature": 0, "top_p": 0.5}
    assert lawyer.approve is not None
    assert (lawyer.approve("ring", {}), lawyer.approve("fetch", {})) == (True, False)
    assert far == RemoteAgent("far", "http://far.example/agents/far", "", "secret")
    assert isinstance(lead, Coordinator)
    assert lead.model == RemoteModel("http://far.example/v1", "large", "secret")
    assert (lead.mode, lead.combine) == ("ask_all", "{answers} {question}")
    assert [expert.name for expert in lead.experts] == ["lawyer", "far"]
    assert lead.limits.steps == 3
    assert team.conversations.window == 6
    assert (folder / "c.db").exists()
    assert "secret" not in repr((far, lead.model))
    team.close()


AGENT = '[agents.a]\nmodel = "tiny"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model = ", "is no TOML"),
        ('model = "tiny"', "agents: Field required"),
        ("[agents]", "agents: "),
        ("[agents.a]", "agents.a: it has no model, and neither has the team"),
        (AGENT + "modle = 1", "agents.a.modle: Extra inputs are not permitted"),
        (AGENT + "seed_memory = 1", "agents.a.seed_memory: Input should be a valid string"),
        ('model = "tiny"\n[agents."a b"]', "a name has 1 to 64 letters"),
        (AGENT + "limits = { stpes = 1 }", "agents.a.limits: no limit stpes; there are steps,"),
        (AGENT + "limits = { steps = 1.5 }", "steps must be a whole number"),
        (AGENT + "limits = { steps = -1 }", "steps must be above 0"),
        (AGENT + 'tools = ["calc"]', "agents.a.tools: there is no tool 'calc'; there are calc"),
        (AGENT + 'tools = ["no_such_module:f"]', "'no_such_module:f' can't be imported"),
        (AGENT + 'tools = ["my_team_tools:f"]', "'my_team_tools:f' can't be imported"),
        (AGENT + 'tools = ["my_team_tools.py:f"]', "'my_team_tools.py:f' can't be imported"),
        (AGENT + 'tools = ["none.py:f"]', "'none.py:f' can't be imported"),
        (AGENT + 'tools = ["my_team_tools:silent"]', "needs a docstring"),
        (AGENT + 'tools = ["clock", "clock"]', "a has two tools called clock"),
        (AGENT + 'tools = ["mcp:x"]', "agents.a.tools: there is no [mcp.x]"),
        (AGENT + 'experts = ["b"]', "agents.a.experts: there is no agent 'b'"),
        (AGENT + 'mode = "ask_all"', "agents.a: mode belongs to an agent with experts"),
        (AGENT + 'experts = ["a"]\nmode = "all"', "agents.a.mode: Input should be"),
        (AGENT + 'experts = ["a"]\ncombine = "x"', "a: combine has no {answers}"),
        (AGENT + 'api_key_env = "X"', "agents.a: api_key_env belongs to a url"),
        ('[agents.a]\nurl = "http://x"\ntools = []', "agents.a: an agent with a url has no tools"),
        ('[agents.a]\nurl = "http://x"\napi_key_env = "NO_KEY"', "NO_KEY is not set"),
        ('coordinator = "b"\n' + AGENT, "coordinator: there is no agent 'b'; there are a"),
        (AGENT + "[mcp.x]", "mcp.x needs either a url or a command"),
        (AGENT + "[conversations]\nwindow = 1", "at least 2 messages"),
        ('[agents.tiny]\nmodel = "tiny"', "an agent and a model have the same name, 'tiny'"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, reason: str) -> None:
    file = folder / "team.toml"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_team(file)
    assert reason in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_plain_function_is_a_tool(folder: Path) -> None:
    (folder / "team.toml").write_text(AGENT + 'tools = ["my_team_tools:plain"]')
    agent: Any = read_team(folder / "team.toml").agents["a"]
    assert [*agent.tools] == ["plain"]


@pytest.mark.parametrize("name", ["team.toml", "team.zh.toml"])
def test_the_examples(name: str) -> None:
    team = read_team(ROOT / "examples" / "team" / name)
    assert [*team.agents] == ["computer_scientist", "lawyer", "coordinator"]
    lead = team.agents["coordinator"]
    assert isinstance(lead, Coordinator)
    assert lead.mode == "ask_all"
    assert [expert.name for expert in lead.experts] == ["computer_scientist", "lawyer"]


@pytest.mark.slow
def test_the_command_serves_the_example(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    file = ROOT / "examples" / "team" / "team.toml"
    command = [sys.executable, "-m", "llama", "agents", str(file), "--port", "0"]
    command += ["--trace", str(trace), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.endswith(
            "asks coordinator; there are computer_scientist, lawyer, coordinator\n"
        )
        url = line.split("/chat")[0]
        for question, answer in [
            ("When does the court open?", "The court opens at 10:15."),
            ("What is Nora's job?", "Nora is a programmer."),
        ]:
            response = httpx.post(f"{url}/integrate", json={"task": question}, timeout=60)
            assert response.json() == {"response": answer}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    steps = [json.loads(line) for line in trace.read_text().splitlines()]
    assert sum(step["gen_ai.operation.name"] == "invoke_agent" for step in steps) == 6
    assert os.stat(trace).st_mode & 0o077 == 0  # questions are nobody else's


def test_what_the_command_says_of_wrong_files(
    tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run_command("agents", tmp_path / "none.toml")
    assert (code, err.strip()) == (1, f"error: there is no file {tmp_path / 'none.toml'}")
    (tmp_path / "team.toml").write_text('[agents.a]\nmodel = "/none"')
    code, _, err = run_command("agents", tmp_path / "team.toml", "--port", "0")
    assert code == 1
    assert "/none" in err
    server = 'tools = ["mcp:x"]\n[mcp.x]\ncommand = ["/no/such/program"]'
    (tmp_path / "mcp.toml").write_text(f'[agents.a]\nmodel = "{TINY}"\n{server}')
    code, _, err = run_command("agents", tmp_path / "mcp.toml", "--port", "0")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "MCP server" in err
    folder = tmp_path / "none" / "trace"
    code, _, err = run_command("agents", tmp_path / "team.toml", "--trace", folder)
    assert (code, "no trace can be written" in err) == (1, True)
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    code, _, err = run_command("agents", tmp_path / "team.toml", **ranks)
    assert (code, "without torchrun" in err) == (1, True)
    (tmp_path / "team.toml").write_text(f'[agents.a]\nmodel = "{TINY}"\nsettings = {{ temp = 0 }}')
    code, _, err = run_command("agents", tmp_path / "team.toml", "--port", "0")
    assert (code, "unknown option 'temp'" in err) == (1, True)
