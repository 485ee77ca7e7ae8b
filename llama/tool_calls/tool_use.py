"""What a chat's answers may call, and how: from a request's settings to grammar and parser.

use = ToolUse(tools, "auto")
prompt = formatter.encode_dialog_prompt(dialog, use.tools, builtin_tools=use.builtin_tools)
grammar = use.grammar_rules(formatter)         # for Grammar(lark=...); None: any answer
parser = use.parser(formatter, prompt)         # of the answer; None: all of it is text
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from llama.dialog import PYTHON_TAG, Tool, checked_builtin_tools, checked_tools
from llama.errors import InputError
from llama.tokenizer import ChatFormat
from llama.tool_calls.call_grammar import call_grammar, call_or_answer_schema
from llama.tool_calls.call_parser import ToolCallParser, call_id_prefix


class FunctionName(TypedDict):
    """Which function."""

    name: str


class NamedToolChoice(TypedDict):
    """One function, which has to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["auto", "none", "required"] | NamedToolChoice


class ToolUse:
    """The functions of a chat, checked.

    tools: definitions of functions, in OpenAI's shape.
    choice: "auto": the answer is text or calls; "required": calls; a function's name in OpenAI's
        shape: one call of it; "none": text. With "none" the prompt has no functions.
    builtin_tools: names of Llama 3.1's.
    parallel: whether an answer may have several calls.

    Calls are constrained to the schemas of their functions by a grammar, as soon as the answer
    begins as a call does. Raises InputError or InputTypeError for what is malformed.
    """

    def __init__(
        self,
        tools: Iterable[Tool] | None = None,
        choice: ToolChoice = "auto",
        *,
        builtin_tools: Iterable[str] = (),
        parallel: bool = True,
    ) -> None:
        self.tools: Sequence[Tool] = checked_tools(tools)
        self.builtin_tools: Sequence[str] = checked_builtin_tools(builtin_tools)
        self.parallel = parallel
        names = [*(tool["function"]["name"] for tool in self.tools), *self.builtin_tools]
        self._callable = _chosen(choice, names)
        self.is_required = choice not in ("auto", "none")
        if isinstance(choice, dict):
            self.parallel = False
        if choice == "none":
            self.tools, self.builtin_tools = [], []

    def __bool__(self) -> bool:
        return bool(self.tools or self.builtin_tools)

    def grammar_rules(self, formatter: ChatFormat) -> str | None:
        """Lark rules that the answer has to match (see `call_grammar`); None for any answer."""
        if not self:
            return None
        return call_grammar(
            [tool for tool in self.tools if tool["function"]["name"] in self._callable],
            [name for name in self.builtin_tools if name in self._callable],
            is_required=self.is_required,
            tool_format=formatter.tool_format,
            parallel=self.parallel,
            has_tag=PYTHON_TAG in formatter.tokenizer.special_tokens,
        )

    def call_or_answer_schema(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A JSON schema for an answer that is one call, or matches the schema `answer`.

        Raises InputError with built-in tools, whose calls are no JSON.
        """
        if self.builtin_tools:
            raise InputError("built-in tools and a JSON schema exclude each other: leave one out")
        return call_or_answer_schema(self.tools, answer)

    def parser(
        self, formatter: ChatFormat, prompt: Iterable[int], sample_index: int = 0, start: str = ""
    ) -> ToolCallParser:
        """For the answer to a prompt, after the text that it is made to start with.

        The ids of its calls follow from the prompt and the index.
        """
        return ToolCallParser(
            formatter.tokenizer,
            self.tools,
            call_id_prefix(prompt, sample_index),
            builtin_tools=self.builtin_tools,
            start=start,
        )


def _chosen(choice: Any, names: list[str]) -> list[str]:
    """The names of the functions that may be called."""
    if choice in ("auto", "none"):
        return names
    if not names:
        raise InputError(f"tool_choice is {choice!r:.80}, and there are no tools")
    if choice == "required":
        return names
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict) or choice != {
        "type": "function",
        "function": {"name": function.get("name")},
    }:
        raise InputError(
            'tool_choice is auto, none, required or {"type": "function", "function": {"name": '
            f"...}}}}, not {choice!r:.80}"
        )
    if function["name"] not in names:
        raise InputError(
            f"tool_choice names {function['name']!r:.80}, which is not among the tools: "
            f"{', '.join(names)}"
        )
    return [function["name"]]
