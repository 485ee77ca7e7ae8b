"""What Anthropic's clients send to /v1/messages, and what they get.

https://docs.anthropic.com/en/api/messages. Requests are checked; the shapes of answers are for the
OpenAPI description. `cache_control` marks what to keep of a prompt, which the prefix store does by
itself, and is ignored wherever it stands.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from llama.serving.wire import StrictModel


class _Block(StrictModel):
    cache_control: dict[str, Any] | None = None


class TextBlock(_Block):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(_Block):
    """Thoughts of an earlier answer, which are no part of the prompt."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block):
    """Encrypted thoughts of an earlier answer, which are no part of the prompt."""

    type: Literal["redacted_thinking"]
    data: str


class DirectCaller(StrictModel):
    """A call by the model itself."""

    type: Literal["direct"]


class ToolUseBlock(_Block):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller | None = None
    toolset_name: None = None


def _as_blocks(content: Any) -> Any:
    """A string is short for one block of text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextContent = Annotated[
    list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])
]


class ToolResultBlock(_Block):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextContent = Field(default_factory=list)
    is_error: bool | None = None
    toolset_name: None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[
    TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


class SystemMessage(StrictModel):
    """Instructions in the middle of a dialog."""

    role: Literal["system"]
    content: TextContent


class UserMessage(StrictModel):
    """What the user says, and results of calls."""

    role: Literal["user"]
    content: Annotated[
        list[UserBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[UserBlock])
    ]


class AssistantMessage(StrictModel):
    """An earlier answer; the last message, the beginning of this one."""

    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock],
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[AssistantBlock]),
    ]


InputMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")
]


class InputTool(StrictModel):
    """A function that the model may call."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    input_examples: None = None


class _Choice(StrictModel):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Choice):
    """The model decides."""

    type: Literal["auto"]


class AnyChoice(_Choice):
    """The model calls at least one tool."""

    type: Literal["any"]


class OneChoice(_Choice):
    """The model calls this tool."""

    type: Literal["tool"]
    name: str


class NoChoice(StrictModel):
    """The model calls none."""

    type: Literal["none"]


class JsonFormat(StrictModel):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    """What the answer has to match."""

    format: JsonFormat | None = None
    effort: None = None


class Thinking(StrictModel):
    """No thoughts; `adaptive` lets the model decide, and Llama has none."""

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class Metadata(StrictModel):
    """Who asks; no part of the prompt."""

    user_id: str | None = None


class PromptFields(StrictModel):
    """What the prompt is made of: the body of POST /v1/messages/count_tokens."""

    model: str
    messages: list[InputMessage] = Field(min_length=1)
    system: TextContent | None = None
    tools: list[InputTool] | None = None
    tool_choice: (
        Annotated[AutoChoice | AnyChoice | OneChoice | NoChoice, Field(discriminator="type")] | None
    ) = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    cache_control: dict[str, Any] | None = None


class MessagesRequest(PromptFields):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    # What has no effect on an answer.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    container: None = None
    diagnostics: None = None
    inference_geo: None = None


class TokenCount(BaseModel):
    """How many tokens a prompt has."""

    input_tokens: int


class TextContentBlock(BaseModel):
    """Text of an answer."""

    type: Literal["text"]
    text: str


class ToolUseContentBlock(BaseModel):
    """A call that an answer makes."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnswerUsage(BaseModel):
    """Token counts; `input_tokens` are those of the prompt that the prefix store did not have."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int


class AnswerMessage(BaseModel):
    """A whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextContentBlock | ToolUseContentBlock]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: AnswerUsage


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """An error."""

    type: Literal["error"]
    error: ErrorDetail
