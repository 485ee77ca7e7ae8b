"""A team from a TOML file.

    model = "llama3:8b"                    # a folder beside the file, or a pulled model
    coordinator = "coordinator"            # who is asked; default: the one that has experts

    [agents.lawyer]
    description = "Knows the law"          # tells the others when to ask
    seed_memory = "You are a lawyer."
    tools = ["calculator", "clock", "fetch", "rag:notes.db", "mcp:files", "my_tools.py:ring"]
    approved = ["delete_all"]              # tools with side effects that may be called unasked

    [agents.engineer]
    url = "http://engineer.example:8000/agents/engineer"

    [agents.coordinator]
    experts = ["lawyer", "engineer"]
    mode = "ask_all"                       # or "tools"; default: by the size of the model

    [mcp.files]
    command = ["python", "server.py"]      # or url = "http://..."

Every key that there is stands in the classes below; any other one is an error.
"""

import importlib.util
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, ValidationError

from llama.agents.agent import Agent
from llama.agents.agent_models import ChatModel, RemoteModel, ServedChatModel
from llama.agents.builtin_tools import BUILTIN, retrieval_tool
from llama.agents.conversations import Conversations
from llama.agents.experts import COMBINE, Coordinator, Expert, Mode, RemoteAgent
from llama.agents.function_tools import Tool, tool
from llama.agents.limits import Approve, Limits
from llama.agents.team import Member, Team
from llama.agents.web_fetch import fetch
from llama.errors import InputError, MissingFileError
from llama.serving.registry import ModelRegistry
from llama.serving.wire import StrictModel
from llama.storage.files import expand

_NAME = re.compile(r"[\w-]{1,64}", re.ASCII)


class ModelFields(StrictModel):
    """A model of another server; `api_key_env` names the environment variable with its key."""

    url: str
    name: str
    api_key_env: str | None = None


class AgentFields(StrictModel):
    """An agent, here or at a URL."""

    description: str = ""
    seed_memory: str = ""
    model: str | ModelFields | None = None
    tools: list[str] = Field([])
    approved: list[str] = Field([])
    experts: list[str] = Field([])
    mode: Mode | None = None
    combine: str | None = None
    limits: dict[str, float] = Field({})
    settings: dict[str, Any] = Field({})
    url: str | None = None
    api_key_env: str | None = None


class McpFields(StrictModel):
    """An MCP server, by one of the two."""

    url: str | None = None
    command: list[str] | None = None


class ConversationFields(StrictModel):
    """See `Conversations`; without a file they are kept in memory."""

    file: str | None = None
    window: int = 20
    window_chars: int | None = None


class TeamFields(StrictModel):
    """The file. Limits, mode, combine and settings are those of agents that have none."""

    model: str | ModelFields | None = None
    coordinator: str | None = None
    mode: Mode | None = None
    combine: str = COMBINE
    limits: dict[str, float] = Field({})
    settings: dict[str, Any] = Field({})
    agents: dict[str, AgentFields] = Field(min_length=1)
    mcp: dict[str, McpFields] = Field({})
    conversations: ConversationFields = ConversationFields()


def read_team(
    file: str | Path,
    model: str | None = None,
    *,
    trace_file: str | Path | None = None,
    **options: Any,
) -> Team:
    """The team in a file.

    model: instead of the file's.
    options: arguments of `Llama.build`.

    Raises MissingFileError, or InputError that names the key which is wrong.
    """
    path = Path(expand(file))
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    try:
        team = TeamFields.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise InputError(f"{path}: {where}: {wrong['msg']}") from None
    if model is not None:
        team.model = model
    try:
        return _Reader(path, team, options).team(trace_file)
    except MissingFileError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _Reader:
    def __init__(self, path: Path, team: TeamFields, options: Mapping[str, Any]) -> None:
        self._folder, self._fields = path.parent, team
        self._folders: dict[str, str | Path] = {}  # of models, by name
        self._registry = ModelRegistry(self._folders, keep_alive=-1, **options)
        self._agents: dict[str, Expert] = {}

    def team(self, trace_file: str | Path | None) -> Team:
        fields, mcp_users = self._fields, {}
        for name, agent in fields.agents.items():
            if not _NAME.fullmatch(name):
                raise InputError(f"agents.{name}: a name has 1 to 64 letters, digits, _ or -")
            self._agents[name] = self._agent(name, agent)
            servers = [tool.removeprefix("mcp:") for tool in agent.tools if tool.startswith("mcp:")]
            if unknown := [server for server in servers if server not in fields.mcp]:
                raise InputError(f"agents.{name}.tools: there is no [mcp.{unknown[0]}]")
            if servers:
                mcp_users[name] = servers
        kept = fields.conversations
        return Team(
            self._agents,
            self._entry(),
            self._registry,
            conversations=Conversations(
                None if kept.file is None else self._folder / expand(kept.file),
                kept.window,
                kept.window_chars,
            ),
            mcp_servers={name: self._mcp(name, server) for name, server in fields.mcp.items()},
            mcp_folder=self._folder,
            mcp_users=mcp_users,
            trace_file=trace_file,
        )

    def _entry(self) -> str:
        names = self._fields.agents
        entry = self._fields.coordinator
        if entry is None:
            leading = [name for name, agent in names.items() if agent.experts]
            entry = leading[0] if len(leading) == 1 else next(iter(names))
        if entry not in names:
            raise InputError(
                f"coordinator: there is no agent {entry!r}; there are {', '.join(names)}"
            )
        return entry

    def _agent(self, name: str, agent: AgentFields) -> Expert:
        where = f"agents.{name}"
        if agent.url is not None:
            allowed = {"url", "description", "api_key_env"}
            if more := sorted(agent.model_fields_set - allowed):
                raise InputError(f"{where}: an agent with a url has no {more[0]}")
            return RemoteAgent(name, agent.url, agent.description, _key(agent.api_key_env, where))
        if agent.api_key_env is not None:
            raise InputError(f"{where}: api_key_env belongs to a url")
        limits = self._limits(where, agent.limits)
        tools = [self._tool(where, tool) for tool in agent.tools if not tool.startswith("mcp:")]
        options: dict[str, Any] = {
            "description": agent.description,
            "tools": tools,
            "limits": limits,
            "settings": {**self._fields.settings, **agent.settings},
            "approve": _approval(agent.approved),
        }
        model = self._model(where, agent.model or self._fields.model)
        if not agent.experts:
            for key in ("mode", "combine"):
                if key in agent.model_fields_set:
                    raise InputError(f"{where}: {key} belongs to an agent with experts")
            return Agent(name, model, agent.seed_memory, **options)
        experts = [self._member(where, expert) for expert in agent.experts]
        mode, combine = agent.mode or self._fields.mode, agent.combine or self._fields.combine
        return Coordinator(
            name, model, agent.seed_memory, experts=experts, mode=mode, combine=combine, **options
        )

    def _member(self, where: str, name: str) -> Member:
        if name not in self._fields.agents:
            raise InputError(f"{where}.experts: there is no agent {name!r}")
        return Member(self._agents, name, self._fields.agents[name].description)

    def _limits(self, where: str, own: Mapping[str, float]) -> Limits:
        known = [limit.name for limit in fields(Limits)]
        values = {**self._fields.limits, **own}
        if unknown := [name for name in values if name not in known]:
            raise InputError(f"{where}.limits: no limit {unknown[0]}; there are {', '.join(known)}")
        whole = {
            name: value if "seconds" in name or value % 1 else int(value)
            for name, value in values.items()
        }
        return Limits(**{**asdict(Limits()), **whole})

    def _model(self, where: str, model: str | ModelFields | None) -> ChatModel:
        if model is None:
            raise InputError(f"{where}: it has no model, and neither has the team")
        if isinstance(model, ModelFields):
            return RemoteModel(model.url, model.name, _key(model.api_key_env, f"{where}.model"))
        beside = self._folder / model
        folder = str(beside if beside.exists() else expand(model))
        name = Path(folder).resolve().name if Path(folder).exists() else model
        if self._folders.setdefault(name, folder) != folder:
            raise InputError(f"{where}.model: two models are called {name}")
        return ServedChatModel(self._registry, name)

    def _tool(self, where: str, text: str) -> Tool:
        if text == "fetch":
            return fetch
        if text in BUILTIN:
            return BUILTIN[text]
        kind, colon, rest = text.partition(":")
        if kind == "rag" and rest:
            from llama.retrieval import Index

            return retrieval_tool(Index.open(self._folder / expand(rest)))
        if not colon:
            known = ", ".join([*BUILTIN, "fetch", "rag:FILE", "mcp:SERVER", "FILE.py:function"])
            raise InputError(f"{where}.tools: there is no tool {text!r}; there are {known}")
        try:
            is_file = kind.endswith(".py")
            module = _module(self._folder / kind) if is_file else importlib.import_module(kind)
            found = getattr(module, rest)
        except (ImportError, AttributeError, OSError, SyntaxError) as error:
            raise InputError(f"{where}.tools: {text!r} can't be imported: {error}") from error
        return found if isinstance(found, Tool) else tool(found)

    def _mcp(self, name: str, server: McpFields) -> str | list[str]:
        if server.url is not None and server.command is None:
            return server.url
        if server.command and server.url is None:
            return server.command
        raise InputError(f"mcp.{name} needs either a url or a command")


def _module(file: Path) -> ModuleType:
    """The module in a file, under no name that others could import."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _approval(names: list[str]) -> Approve | None:
    return (lambda name, arguments: name in names) if names else None


def _key(variable: str | None, where: str) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise InputError(f"{where}.api_key_env: {variable} is not set in the environment")
    return os.environ[variable]
