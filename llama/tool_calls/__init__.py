"""The functions that a chat offers, and their calls in its answers.

`call_parser` finds calls in an answer, `call_grammar` makes an answer call rightly, `tool_use`
gives both for a request's settings. How functions stand in a prompt is in `llama.dialog`.
"""

from llama.tool_calls.call_parser import (
    CallArguments,
    CallEnd,
    CallStart,
    Event,
    TextDelta,
    ToolCallParser,
    call_id_prefix,
    whole_answer,
)
from llama.tool_calls.tool_use import ToolChoice, ToolUse

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "Event",
    "TextDelta",
    "ToolCallParser",
    "ToolChoice",
    "ToolUse",
    "call_id_prefix",
    "whole_answer",
]
