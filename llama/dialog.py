"""A chat before it is token ids: its messages, the functions it offers, and how both are written.

    [{"role": "user", "content": "What is 23 * 17?"},
     {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function",
         "function": {"name": "calculator", "arguments": '{"expression": "23 * 17"}'}}]},
     {"role": "tool", "content": "391", "tool_call_id": "call_1"}]

The shapes are OpenAI's and Hugging Face's. `checked_dialog` and `checked_tools` refuse every other
one; `write_message` gives a message as the released models were trained to read it: with functions
in JSON form (Llama 3.1 and 3.3, and the template that is released with 3.2) or in pythonic form
(Meta's prompt format of 3.2 and 3.3). `llama.tokenizer.ChatFormat` makes token ids of it, and
`llama.chat_template` says the same in Jinja.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast, get_args

from llama.args import ModelArgs
from llama.errors import InputError, InputTypeError

Role = Literal["system", "user", "assistant", "ipython", "tool"]
ToolFormat = Literal["json", "pythonic"]


class CalledFunction(TypedDict):
    """A function's name and its arguments: an object, or the text of one in JSON."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(TypedDict):
    """The assistant's call of a function; `id` is what its result refers to."""

    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunction


class Message(TypedDict):
    """One turn of a dialog. `ipython`, also called `tool`, is what a called tool returned.

    `content` is a text. The assistant's may be None beside `tool_calls`; a tool's may be any other
    JSON value, which is written as JSON. Of a tool's message, `tool_call_id` says which call it
    answers, `is_error` that the call failed; `name`, the function's, is not written.
    """

    role: Role
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    is_error: NotRequired[bool]


Dialog = Sequence[Message]


class Function(TypedDict):
    """What a function is for; `parameters` is the JSON schema of its arguments.

    `strict` asks for arguments that match the schema (see `llama.tool_calls`).
    """

    name: str
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class Tool(TypedDict):
    """The definition of a function that the assistant may call."""

    type: Literal["function"]
    function: Function


class WrittenMessage(NamedTuple):
    """The text of a message: `content`, then `calls` after a `<|python_tag|>` if `is_tagged`."""

    content: str
    calls: str
    is_tagged: bool
    end: str  # the name of the special token that ends it


BUILTIN_TOOLS = ("brave_search", "wolfram_alpha")
DEFAULT_DATE = "26 Jul 2024"  # that of the released templates
PYTHON_TAG = "<|python_tag|>"

_TOOL_ROLES = ("ipython", "tool")
_FUNCTION_NAME = re.compile(r"[\w./:-]{1,256}", re.ASCII)

# The prompts that the released models were trained with. The missing spaces are theirs.
ENVIRONMENT = "Environment: ipython\n"
BUILTIN = "Tools: {names}\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
JSON_OFFER = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)
PYTHONIC_OFFER = (
    "You are an expert in composing functions. You are given a question and a set of possible "
    "functions.\nBased on the question, you will need to make one or more function/tool calls to "
    "achieve the purpose.\nIf none of the function can be used, point it out. If the given "
    "question lacks the parameters required by the function,\nalso point it out. You should only "
    "return the function call in tools call sections.\n\nIf you decide to invoke any of the "
    "function(s), you MUST put it in the format of [func_name1(params_name1=params_value1, "
    "params_name2=params_value2...), func_name2(params)]\nYou SHOULD NOT include any other text in "
    "the response.\n\nHere is a list of functions in JSON format that you can invoke.\n\n"
)


def default_tool_format(args: ModelArgs) -> ToolFormat:
    """Pythonic for Llama 3.2 1B and 3B, as Meta's prompt format has it; else JSON."""
    return "pythonic" if args.has_llama32_shape else "json"


def write_dialog(
    dialog: Iterable[Message],
    tools: Sequence[Tool] = (),
    builtin_tools: Sequence[str] = (),
    tool_format: ToolFormat = "json",
    date: str = DEFAULT_DATE,
) -> list[tuple[Message, WrittenMessage]]:
    """Each message of a checked dialog and its text, the functions written into the first ones.

    A system message is put in front where the functions need one and there is none. Raises
    InputError for functions in JSON form without a user's message, where they stand.
    """
    messages = list(dialog)
    system, offer = "", ""
    if tools and tool_format == "pythonic":
        functions = [tool["function"] for tool in tools]
        system = PYTHONIC_OFFER + json_text(functions, indent=4)
    if builtin_tools or (tools and tool_format == "json"):
        builtin = BUILTIN.format(names=", ".join(builtin_tools)) if builtin_tools else ""
        header = ENVIRONMENT + builtin + DATES.format(date=date)
        system = header + system
    if tools and tool_format == "json":
        offer = JSON_OFFER + "".join(json_text(tool, indent=4) + "\n\n" for tool in tools)
        if not any(message["role"] == "user" for message in messages):
            raise InputError("functions stand in the user's first message, and there is none")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})

    written = []
    for index, message in enumerate(messages):
        text = write_message(message, builtin_tools, tool_format)
        if index == 0 and system:
            gap = "\n\n" if text.content and not system.endswith("\n\n") else ""
            text = text._replace(content=system + gap + text.content)
        if offer and message["role"] == "user":
            text, offer = text._replace(content=offer + text.content), ""
        written.append((message, text))
    return written


def write_message(
    message: Message, builtin_tools: Sequence[str] = (), tool_format: ToolFormat = "json"
) -> WrittenMessage:
    """The text of one checked message, as if it stood alone."""
    content = message["content"].strip()
    if message.get("is_error"):
        content = json_text({"error": content})
    calls = message.get("tool_calls")
    if not calls:
        return WrittenMessage(content, "", False, "<|eot_id|>")
    names = [call["function"]["name"] for call in calls]
    is_builtin = any(name in builtin_tools for name in names)
    if tool_format == "pythonic" and not is_builtin:
        text = f"[{', '.join(_pythonic_call(call) for call in calls)}]"
    else:
        text = "; ".join(
            _builtin_call(call) if call["function"]["name"] in builtin_tools else _json_call(call)
            for call in calls
        )
    # With built-in tools the released template ends every call as a message, not as the turn.
    end = "<|eom_id|>" if builtin_tools else "<|eot_id|>"
    return WrittenMessage(content, text, is_builtin or content != "", end)


def _json_call(call: ToolCall) -> str:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json_text(arguments)
    return f'{{"name": {json_text(name)}, "parameters": {text}}}'


def _pythonic_call(call: ToolCall) -> str:
    arguments = [f"{name}={value!r}" for name, value in call_arguments(call).items()]
    return f"{call['function']['name']}({', '.join(arguments)})"


def _builtin_call(call: ToolCall) -> str:
    arguments = [f"{name}={json_text(value)}" for name, value in call_arguments(call).items()]
    return f"{call['function']['name']}.call({', '.join(arguments)})"


def call_arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments of a checked call as an object."""
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON in the form that Jinja's `tojson` has in Hugging Face's libraries."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def checked_dialog(dialog: Dialog) -> list[Message]:
    """The messages of a well-formed dialog; InputError or InputTypeError for any other.

    Their contents are texts, and results stand in the order of the calls that they answer.
    """
    if not isinstance(dialog, Iterable):
        raise InputTypeError(f"a dialog must be a list of messages, got {dialog!r:.60}")
    messages = [checked_message(m, f"message {index}") for index, m in enumerate(dialog)]
    if not messages:
        raise InputError("the dialog is empty; it needs at least one message")
    return _ordered_results(messages)


def checked_message(message: Message, name: str = "message") -> Message:
    """A well-formed message, its content a text; InputError or InputTypeError for any other."""
    if not isinstance(message, dict):
        raise InputTypeError(f"{name} must be a dict with role and content, got {message!r:.60}")
    role = message.get("role")
    keys = {"role", "content"}
    optional = {"tool_call_id", "name", "is_error"} if role in _TOOL_ROLES else set()
    if role == "assistant":
        optional = {"tool_calls"}
    if message.get("tool_calls") and role == "assistant":
        optional |= {"content"}
        keys -= {"content"}
    if not keys <= message.keys() <= keys | optional:
        more = f", and may have {', '.join(sorted(optional))}" if optional else ""
        raise InputError(f"{name} must have the keys role and content{more}, got {list(message)}")
    if role not in get_args(Role):
        roles = ", ".join(get_args(Role))
        raise InputError(f"{name} has the unknown role {role!r}; roles are {roles}")
    content: Any = message.get("content")
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], name)
        content = "" if content is None and message["tool_calls"] else content
    if role in _TOOL_ROLES and isinstance(content, dict | list | int | float):
        content = _checked_json(content, f"{name}: content")
    if not isinstance(content, str):
        raise InputTypeError(f"{name}: content must be a str, got {content!r:.60}")
    return cast(Message, {**message, "content": content})


def _check_calls(calls: Any, name: str) -> None:
    if not isinstance(calls, list):
        raise InputTypeError(f"{name}: tool_calls must be a list, got {calls!r:.60}")
    for index, call in enumerate(calls):
        where = f"{name}: tool_calls[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise InputError(
                f"{where} must be a dict with id, type 'function' and function, got {call!r:.80}"
            )
        if unknown := [*(call.keys() - {"id", "type", "function"})]:
            raise InputError(f"{where} has the unknown key {unknown[0]!r}")
        if function.keys() != {"name", "arguments"}:
            raise InputError(
                f"{where}: function must have the keys name and arguments, got {list(function)}"
            )
        _check_name(function["name"], where)
        try:
            is_object = isinstance(call_arguments(call), dict)
        except (TypeError, ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise InputError(
                f"{where}: arguments must be an object or the JSON text of one, got "
                f"{function['arguments']!r:.80}"
            )


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        raise InputError(
            f"{where}: a function's name is made of letters, digits and _ . / : -, got {name!r:.80}"
        )


def _ordered_results(messages: list[Message]) -> list[Message]:
    """The results that follow calls, in the order of the calls. Llama's format has no ids."""
    ordered: list[Message] = []
    position: dict[str, int] = {}  # of each call of the last assistant message, by its id
    results: list[Message] = []  # that followed it
    for index, message in enumerate(messages):
        if message["role"] not in _TOOL_ROLES:
            ordered += _sorted_results(results, position)
            ordered.append(message)
            ids = [call.get("id") for call in message.get("tool_calls", ())]
            position = {id: n for n, id in enumerate(ids) if id is not None}
            results = []
            continue
        call_id = message.get("tool_call_id")
        if position and call_id is not None and call_id not in position:
            raise InputError(
                f"message {index} answers the call {call_id!r:.80}, which the assistant's message "
                f"before it did not make; it made {', '.join(position)}"
            )
        results.append(message)
    return ordered + _sorted_results(results, position)


def _sorted_results(results: list[Message], position: Mapping[str, int]) -> list[Message]:
    if not all(result.get("tool_call_id") in position for result in results):
        return results
    return sorted(results, key=lambda result: position[result["tool_call_id"]])


def checked_tools(tools: Iterable[Tool] | None) -> list[Tool]:
    """The definitions of functions; InputError or InputTypeError where they are malformed."""
    if tools is None:
        return []
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InputTypeError(f"tools must be a list of functions, got {tools!r:.60}")
    checked = list(tools)
    names = set()
    for index, tool in enumerate(checked):
        where = f"tools[{index}]"
        function: Any = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise InputError(
                f'{where} must be {{"type": "function", "function": {{"name": ..., "description": '
                f'..., "parameters": ...}}}}, got {tool!r:.80}'
            )
        known = Function.__annotations__
        if unknown := [*(tool.keys() - {"type", "function"}), *(function.keys() - known.keys())]:
            raise InputError(f"{where} has the unknown key {unknown[0]!r}")
        _check_name(function.get("name"), where)
        if function["name"] in names:
            raise InputError(f"{where}: there are two functions named {function['name']!r}")
        names.add(function["name"])
        for key, kind in (("description", str), ("parameters", dict), ("strict", bool)):
            if not isinstance(function.get(key), kind | None):
                raise InputTypeError(
                    f"{where}: {key} must be a {kind.__name__}, got {function[key]!r:.80}"
                )
        _checked_json(tool, where)
    return checked


def _checked_json(value: Any, where: str) -> str:
    try:
        return json_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} can't be written as JSON: {error}") from None


def checked_builtin_tools(names: Iterable[str]) -> list[str]:
    """The names of built-in tools; InputError for others."""
    checked = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in checked if name not in BUILTIN_TOOLS]:
        raise InputError(f"no built-in tool {unknown[0]!r}; there are {', '.join(BUILTIN_TOOLS)}")
    return checked
