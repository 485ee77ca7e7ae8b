"""The input of OpenAI's responses: items, which become the messages of a dialog."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llama.dialog import Message
from llama.serving.openai_fields import wrong
from llama.serving.wire import StrictModel

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(StrictModel):
    """Text of the user, the system or a tool."""

    type: Literal["input_text"]
    text: str


class OutputText(StrictModel):
    """Text of the assistant, as it came in an answer."""

    type: Literal["output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # which OpenAI's client adds; it says nothing new


Text = Annotated[InputText | OutputText, Field(discriminator="type")]


class MessageItem(StrictModel):
    """A message. One that came in an answer has an id and a status, which have no effect."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Text]
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(StrictModel):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    namespace: None = None
    caller: None = None
    parsed_arguments: Any = None  # as `parsed`


class FunctionCallOutputItem(StrictModel):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    namespace: None = None
    caller: None = None


def _kind(item: Any) -> str:
    return str(item.get("type", "message")) if isinstance(item, dict) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="this server knows message, function_call and function_call_output",
    ),
]


def dialog(instructions: str | None, items: str | Sequence[Item]) -> list[Message]:
    """The messages of the input, the `instructions` as the system's in front.

    Calls that follow each other, or a message of the assistant, are one message.
    """
    messages: list[Message] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    previous: Item | None = None
    for item in items:
        if isinstance(item, FunctionCallItem):
            follows = isinstance(previous, FunctionCallItem) or (
                isinstance(previous, MessageItem) and previous.role == "assistant"
            )
            if not follows:
                messages.append({"role": "assistant", "content": ""})
            function: Any = {"name": item.name, "arguments": item.arguments}
            call: Any = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionCallOutputItem):
            content = _text(item.output)
            messages.append({"role": "tool", "content": content, "tool_call_id": item.call_id})
        else:
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
        previous = item
    if not messages:
        raise wrong("input", "it is empty; give at least one message")
    return messages


def _text(content: str | Sequence[Text]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
