"""Functions that the assistant may call, in Llama 3.1's JSON form, a calculator first of all."""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from examples.tiny_skills.facts import forms
from llama.errors import InputError


def tool(name: str, description: str, parameter: str, meaning: str) -> dict[str, Any]:
    """The definition of a function of one text, as Llama 3.1's prompt shows it."""
    properties = {parameter: {"type": "string", "description": meaning}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


CALCULATORS = tuple(
    tool("calculator", description, "expression", meaning)
    for description in ("Calculates", "Evaluates an expression")
    for meaning in ("What to calculate", "An expression such as 12 * 34")
)
CALCULATOR = CALCULATORS[0]


class Other(NamedTuple):
    """A function that is offered beside the calculator, and what is asked of it."""

    definition: dict[str, Any]
    kind: str  # of its argument
    asks: tuple[str, ...]
    results: tuple[str, ...]
    answer: str

    def called(self, argument: str) -> str:
        function = self.definition["function"]
        return call(function["name"], **{function["parameters"]["required"][0]: argument})


OTHERS = (
    Other(
        tool("get_weather", "Tells the weather in a town", "city", "Name of the town"),
        "town",
        forms("What is the weather in {v}? / How is the weather in {v} today?"),
        forms("sunny / rainy / cloudy / windy / foggy"),
        "It is {r} in {v}.",
    ),
    Other(
        tool("get_time", "Tells the time in a town", "city", "Name of the town"),
        "town",
        forms("What time is it in {v}? / Tell me the time in {v}."),
        forms("3:15 / 10:40 / 7:05 / 12:30"),
        "It is {r} in {v}.",
    ),
    Other(
        tool("get_price", "Looks up what a thing costs", "item", "The thing"),
        "a thing",
        forms("Look up the price of {v}. / Find out how much {v} costs."),
        forms("12 dollars / 35 dollars / 8 dollars"),
        "The price is {r}.",
    ),
)

# Meta's wording for definitions in the first user message, and that of Hugging Face's template for
# definitions in the system prompt.
USER_OFFER = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}. Do not use variables.\n\n"
)
SYSTEM_OFFER = (
    "You have access to the following functions. To call a function, please respond with JSON for "
    'a function call. Respond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}. Do not use variables.\n\n"
)
OFFER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tool calling capabilities.",
    "Environment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
    "When you receive a tool call response, use the output to format an answer to the original "
    "user question.",
)


def offer(tools: Iterable[Mapping[str, Any]], indent: int | None = None) -> str:
    """The definitions as they stand in a prompt, each with an empty line after it."""
    return "".join(json.dumps(each, indent=indent) + "\n\n" for each in tools)


def call(name: str, **arguments: str) -> str:
    """What the assistant says to call a function."""
    return json.dumps({"name": name, "parameters": arguments})


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> int | float:
    """The value of numbers, + - * / and parentheses; whole where it is a whole number.

    Raises ValueError for anything else, and for division by zero.
    """
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return int(value) if value == round(value) else value
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise InputError(f"{expression!r:.100} has no value: {error}") from error


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if not isinstance(node.value, bool):
            return node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise InputError(f"a calculator takes numbers, + - * / and parentheses, not {ast.dump(node)}")


def calls_for(expression: str) -> Callable[[str], bool]:
    """Whether an answer is a call of the calculator for the value of `expression`."""

    def right(answer: str) -> bool:
        try:
            asked = json.loads(answer)
            return (
                asked.keys() == {"name", "parameters"}
                and asked["name"] == "calculator"
                and asked["parameters"].keys() == {"expression"}
                and abs(evaluate(asked["parameters"]["expression"]) - evaluate(expression)) < 1e-9
            )
        except (AttributeError, TypeError, ValueError):
            return False

    return right


def ends_with_number(result: str) -> Callable[[str], bool]:
    """Whether the last number in an answer is this one."""

    def right(answer: str) -> bool:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
        return bool(numbers) and float(numbers[-1]) == float(result)

    return right
