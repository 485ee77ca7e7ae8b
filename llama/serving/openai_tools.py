"""Tools in OpenAI's requests: functions, which of them may be called, and calls that were made.

Chat completions nest a function's fields, responses do not; both become what all dialects have.
"""

from typing import Any, Literal

from llama.dialog import Tool, ToolCall
from llama.serving.openai_fields import wrong
from llama.serving.wire import StrictModel
from llama.tool_calls import ToolChoice


class FunctionFields(StrictModel):
    """A function; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """In the form of all dialects."""
        names = ("name", "description", "parameters", "strict")
        fields: Any = {name: v for name in names if (v := getattr(self, name)) is not None}
        return {"type": "function", "function": fields}


class ChatTool(StrictModel):
    """A tool of a chat completion."""

    type: Literal["function"]
    function: FunctionFields


class FunctionName(StrictModel):
    """Which function."""

    name: str


class NamedChatTool(StrictModel):
    """A function by its name, in a chat completion."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(StrictModel):
    """Those that may be called; the model sees no others."""

    mode: Literal["auto", "required"]
    tools: list[NamedChatTool]


class AllowedChatTools(StrictModel):
    """A choice of some functions, in a chat completion."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class NamedResponseTool(StrictModel):
    """A function by its name, in a response."""

    type: Literal["function"]
    name: str


class AllowedResponseTools(StrictModel):
    """A choice of some functions, in a response."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedResponseTool]


Mode = Literal["none", "auto", "required"]
ChatToolChoice = Mode | NamedChatTool | AllowedChatTools
ResponseToolChoice = Mode | NamedResponseTool | AllowedResponseTools


def chosen_tools(
    tools: list[Tool], choice: ChatToolChoice | ResponseToolChoice | None
) -> tuple[list[Tool], ToolChoice]:
    """The tools that may be called, and the choice in the form of all dialects.

    Raises HttpError for an allowed tool that there is not.
    """
    if choice is None or isinstance(choice, str):
        return tools, choice or "auto"
    if isinstance(choice, NamedChatTool | NamedResponseTool):
        return tools, {"type": "function", "function": {"name": _name(choice)}}
    allowed = choice.allowed_tools if isinstance(choice, AllowedChatTools) else choice
    by_name = {tool["function"]["name"]: tool for tool in tools}
    names = [_name(tool) for tool in allowed.tools]
    if unknown := [name for name in names if name not in by_name]:
        raise wrong("tool_choice", f"{unknown[0]!r:.80} is not among the tools")
    return [tool for name, tool in by_name.items() if name in names], allowed.mode


def _name(tool: NamedChatTool | NamedResponseTool) -> str:
    return tool.function.name if isinstance(tool, NamedChatTool) else tool.name


class CalledFunction(StrictModel):
    """A function's name, and its arguments in JSON."""

    name: str
    arguments: str
    parsed_arguments: Any = None  # which OpenAI's client adds; it says nothing new


class InputToolCall(StrictModel):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def call(self) -> ToolCall:
        """In the form of all dialects."""
        name, arguments = self.function.name, self.function.arguments
        function: Any = {"name": name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}
