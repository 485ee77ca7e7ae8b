"""Tools that come with the package: arithmetic, the time, and the search of documents.

`BUILTIN` has those that a team's file names by one word. `retrieval_tool` makes one of an index.
"""

import ast
import math
import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llama.agents.function_tools import Tool, ToolError, tool

_MAX_CHARS = 500  # of an expression
_SIGNS = str.maketrans({"^": "**", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"})
_MAX_BITS = 4096  # of a whole number
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "round": lambda number, digits=0: round(number, max(min(digits, 300), -300)),
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
}


@tool(trusted=True)
def calculator(expression: str) -> int | float:
    """Evaluates an arithmetic expression.

    Args:
        expression: The expression
    """
    return evaluate(expression)


def evaluate(expression: str) -> int | float:
    """The value of numbers, + - * / // % **, parentheses, pi, e, and functions such as sqrt.

    Nothing else is evaluated. Raises ToolError for anything else, and for numbers that are too
    large.
    """
    if len(expression) > _MAX_CHARS:
        raise ToolError(f"the expression has more than {_MAX_CHARS} characters")
    text = expression.strip().translate(_SIGNS)
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except ToolError:
        raise
    except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ToolError(f"{expression!r:.100} can't be evaluated: {reason}") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _checked(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        # Before it is computed: 9**9**9 would take all of the memory.
        is_power = isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int)
        if is_power and abs(right) * max(int(left).bit_length(), 1) > _MAX_BITS:
            raise OverflowError
        return _checked(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            return _checked(function(*map(_value, node.args)))
    known = f"numbers, + - * / // % **, {', '.join([*_CONSTANTS, *_FUNCTIONS])}"
    raise ToolError(f"{ast.unparse(node)!r:.100} is no arithmetic; there are {known}")


def _checked(value: Any) -> int | float:
    """A real number of bounded size."""
    if isinstance(value, complex):
        raise ToolError("the result is no real number")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


@tool(trusted=True)
def clock(timezone: str = "UTC") -> str:
    """The current date and time.

    Args:
        timezone: A name of the IANA database, such as Europe/Berlin or Asia/Shanghai
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(f"no time zone {timezone!r:.60}; name one such as Asia/Shanghai") from None
    return datetime.now(zone).strftime("%A, %Y-%m-%d %H:%M:%S %Z (UTC%z)")


class Searchable(Protocol):
    """What has documents: `llama.retrieval.Index`, or anything with such a search."""

    def search(self, question: str, k: int = 5) -> Any:
        """Hits, best first, with `text` and `source`, and perhaps `page`."""


def retrieval_tool(
    index: Searchable, name: str = "search_documents", k: int = 5, description: str | None = None
) -> Tool:
    """The search of an index as a tool; hits come with their sources."""

    def search_documents(question: str) -> list[dict[str, Any]]:
        hits = index.search(question, k)
        return [
            {
                key: value
                for key in ("source", "page", "heading", "text")
                if (value := getattr(hit, key, None)) is not None
            }
            for hit in hits
        ]

    search_documents.__doc__ = (
        description or "Passages from documents that may answer a question, with their sources."
    ) + "\n\nArgs:\n    question: What the documents are asked"
    return tool(name=name)(search_documents)


BUILTIN = {"calculator": calculator, "clock": clock}
