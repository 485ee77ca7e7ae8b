"""Functions that a chat offers: their calls, found in answers (`call_parser`)."""

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

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "Event",
    "TextDelta",
    "ToolCallParser",
    "call_id_prefix",
    "whole_answer",
]
