"""Agents by the Agent2Agent protocol, 1.0 (https://a2a-protocol.org): cards, and SendMessage.

    GET /.well-known/agent-card.json                  of the agent that leads the team
    GET /agents/NAME/.well-known/agent-card.json
    POST /agents/NAME/a2a                             JSON-RPC

An answer is a message, never a task; so there is nothing to list, to get or to cancel. The id of a
context is that of a conversation.
"""

import json
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from llama import __version__
from llama.agents.agent_routes import http_errors
from llama.agents.limits import AgentError
from llama.agents.team import Team
from llama.errors import InputError
from llama.serving.http_errors import HttpError
from llama.serving.json_output import JSONResponse
from llama.serving.wire import while_connected

VERSION = "1.0"
_TEXT = ["text/plain"]
# Of JSON-RPC, and of A2A.
_PARSE, _REQUEST, _METHOD, _PARAMS, _INTERNAL = -32700, -32600, -32601, -32602, -32603
_TASK_NOT_FOUND, _UNSUPPORTED, _CONTENT_TYPE, _VERSION = -32001, -32004, -32005, -32009
_TASK_METHODS = ("GetTask", "CancelTask", "SubscribeToTask")
_OTHER_METHODS = (
    "SendStreamingMessage",
    "ListTasks",
    "GetExtendedAgentCard",
    "CreateTaskPushNotificationConfig",
    "GetTaskPushNotificationConfig",
    "ListTaskPushNotificationConfigs",
    "DeleteTaskPushNotificationConfig",
)


class _RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def routes(team: Team) -> APIRouter:
    """The cards of a team's agents, and how they are asked."""
    router = APIRouter(tags=["A2A"])

    @router.get("/.well-known/agent-card.json")
    async def entry_card(request: Request) -> JSONResponse:
        """The card of the agent that leads the team."""
        return JSONResponse(agent_card(team, team.entry, str(request.base_url)))

    @router.get("/agents/{name}/.well-known/agent-card.json")
    async def card(name: str, request: Request) -> JSONResponse:
        """An agent's card."""
        with http_errors():
            return JSONResponse(agent_card(team, name, str(request.base_url)))

    @router.post("/agents/{name}/a2a")
    async def rpc(name: str, request: Request) -> Response:
        """SendMessage, as JSON-RPC."""
        with http_errors():
            team.agent(name)
        head: dict[str, Any] = {"jsonrpc": "2.0", "id": None}
        try:
            body = _body(await request.body())
            head["id"] = body.get("id")
            _check_version(request.headers.get("a2a-version"))
            result = await while_connected(request, _send(team, name, body))
        except _RpcError as error:
            return JSONResponse({**head, "error": {"code": error.code, "message": str(error)}})
        return JSONResponse({**head, "result": result})

    return router


def agent_card(team: Team, name: str, url: str) -> dict[str, Any]:
    """What an agent is, for other programs. Raises AgentError for one that there is not."""
    agent = team.agent(name)
    description = agent.description or f"The agent {name}"
    base = f"{url.rstrip('/')}/agents/{name}"
    return {
        "name": name,
        "description": description,
        "version": __version__,
        "supportedInterfaces": [
            {"url": f"{base}/a2a", "protocolBinding": "JSONRPC", "protocolVersion": VERSION}
        ],
        "capabilities": {"streaming": False, "pushNotifications": False},
        "defaultInputModes": _TEXT,
        "defaultOutputModes": _TEXT,
        "skills": [{"id": name, "name": name, "description": description, "tags": ["chat"]}],
    }


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _RpcError(_PARSE, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict) or body.get("jsonrpc") != "2.0":
        raise _RpcError(_REQUEST, 'the body is no JSON-RPC request: {"jsonrpc": "2.0", ...}')
    return body


def _check_version(version: str | None) -> None:
    if version is not None and version.partition(".")[0] != "1":
        raise _RpcError(_VERSION, f"A2A-Version {version[:20]}: this server has {VERSION}")


async def _send(team: Team, name: str, body: dict[str, Any]) -> dict[str, Any]:
    method = body.get("method")
    if method in _TASK_METHODS:
        raise _RpcError(_TASK_NOT_FOUND, "there are no tasks: every answer is a message")
    if method in _OTHER_METHODS:
        raise _RpcError(_UNSUPPORTED, f"{method} is not supported; SendMessage is")
    if method != "SendMessage":
        raise _RpcError(_METHOD, f"there is no method {method!r:.60}; there is SendMessage")
    params = body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    if not isinstance(message, dict):
        raise _RpcError(_PARAMS, "params.message is missing")
    context = message.get("contextId") or uuid.uuid4().hex
    if not isinstance(context, str):
        raise _RpcError(_PARAMS, "params.message.contextId is no text")
    if message.get("taskId"):
        raise _RpcError(_TASK_NOT_FOUND, "there are no tasks: every answer is a message")
    question = _text(message.get("parts"))
    try:
        run = team.start(name)
        outcome = await team.answer(
            name,
            [{"role": "user", "content": question}],
            run,
            conversation=context if name in team.local else None,
        )
    except (AgentError, HttpError) as error:
        raise _RpcError(_INTERNAL, str(error)) from error
    except InputError as error:
        raise _RpcError(_PARAMS, str(error)) from error
    return {
        "message": {
            "messageId": uuid.uuid4().hex,
            "contextId": context,
            "role": "ROLE_AGENT",
            "parts": [{"text": outcome.text}],
        }
    }


def _text(parts: Any) -> str:
    """The text of a message. Raises for parts that are none."""
    if not isinstance(parts, list) or not parts:
        raise _RpcError(_PARAMS, "params.message.parts is empty or missing")
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise _RpcError(_CONTENT_TYPE, "only parts with text can be read")
        texts.append(text)
    if not "".join(texts).strip():
        raise _RpcError(_PARAMS, "the message is empty")
    return "\n".join(texts)
