"""Tools in OpenAI's requests: functions, which of them may be called, and calls that were made.

Chat completions nest a function's fields, responses do not; both become what all dialects have.
"""

from typing import Any, Literal

from llama.dialog import Tool, ToolCall
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


class ChatToolChoice(StrictModel):
    """A function that a chat completion has to call."""

    type: Literal["function"]
    function: FunctionName


def chosen_tool(
    choice: Literal["none", "auto", "required"] | ChatToolChoice | None,
) -> ToolChoice:
    """In the form of all dialects."""
    if isinstance(choice, ChatToolChoice):
        return {"type": "function", "function": {"name": choice.function.name}}
    return choice or "auto"


class CalledFunction(StrictModel):
    """A function's name, and its arguments in JSON."""

    name: str
    arguments: str


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
