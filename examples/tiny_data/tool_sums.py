"""Calculators of many names, and sums and word problems to ask them."""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from examples.tiny_data.fillers import COUNTED
from examples.tiny_data.tool_prompts import failure, returned
from examples.tiny_data.tool_table import Case, is_order, tool, worded
from examples.tiny_data.turns import Source, Turn
from llama.agents.builtin_tools import evaluate
from llama.dialog import Tool

_NAMES = """calculator calculator calculator calculator calculate calc compute evaluate math
do_math solve arithmetic eval_expression evaluate_expression run_calculator math_tool
pocket_calculator calculate_expression simple_calculator getResult""".split()
_PARAMETERS = """expression expression expression expression expr formula query input sum term
calculation equation math_expression what""".split()
_DESCRIPTIONS = (
    *("Calculates", "Evaluates an expression", "Evaluates an arithmetic expression.", ""),
    *("Computes the value of an expression", "Does arithmetic", "A calculator", "Solves sums."),
    *("Calculates the result of a mathematical expression", "Works out sums", "Calculate a sum"),
)
_MEANINGS = (
    *("The expression", "What to calculate", "An expression such as 12 * 34", "The sum"),
    *("A mathematical expression", "The expression to evaluate", "For example 3 + 4"),
)


def _problems(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    made = []
    for line in text.strip().splitlines():
        expression, _, asks = line.partition(" | ")
        made.append((expression, tuple(asks.split(" ; " if " / " in expression else " / "))))
    return tuple(made)


_LINES = _problems(Path(__file__).with_name("tool_sums.txt").read_text())
PROBLEMS = tuple((expression, ask) for expression, asks in _LINES for ask in asks)


@dataclass(frozen=True)
class Calculator:
    """A calculator as a dialog offers it."""

    definition: Tool

    @staticmethod
    def offered(rng: Random) -> "Calculator":
        name, parameter = rng.choice(_NAMES), rng.choice(_PARAMETERS)
        schema: dict[str, Any] = {"type": "string"}
        if rng.random() < 0.7:
            schema["description"] = rng.choice(_MEANINGS)
        parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
        description = rng.choice(_DESCRIPTIONS)
        return Calculator(tool(name, description, parameters))

    def case(self, source: Source) -> Case:
        rng = source.rng
        expression, question = problem(source)
        function = self.definition["function"]
        (parameter,) = function["parameters"]["required"]  # type: ignore[index]
        value = evaluate(expression)
        value = value if isinstance(value, int) else round(value, 4)
        result = returned(rng, function["name"], value, f"{expression} = {{r}}.", "answer")
        if rng.random() < 0.06:
            result = failure(rng)
        return Case(question, function["name"], {parameter: expression}, result)


def problem(source: Source) -> tuple[str, str]:
    """An expression and a question whose answer is its value."""
    rng = source.rng
    if rng.random() < 0.5:
        formula, asks = rng.choice(_LINES)
        template = rng.choice(asks)
    else:
        formula, template = rng.choice(PROBLEMS)
    a, b, d = _numbers(rng)
    if " - " in formula or "percent" in template:
        a, b = max(a, b) + 1, min(a, b)
    if "percent" in template or "%" in template:
        b = rng.randint(1, 99)
    if template.endswith("loses {d}. How many are left?") or "{a} * {b} - {d}" in formula:
        d = rng.randint(2, a)
    who, who2 = source.pick("person"), source.pick("person")
    while who2 == who:
        who2 = source.pick("person")
    values = {"a": a, "b": b, "c": a * b, "d": d, "who": who, "who2": who2}
    values["things"] = rng.choice(COUNTED)
    if rng.random() < 0.2 and formula == "{c} / {b}":
        values["c"] = a
        if a % b and "{things}" in template:
            values["c"] = a * b
    text = template
    if rng.random() < 0.6 or is_order(template):
        text = worded(rng, template)
    text = re.sub(r"\{(\w+)\}", lambda hole: str(values[hole[1]]), text)
    if " * " in text and rng.random() < 0.3:
        text = text.replace(" * ", rng.choice((" x ", " × ", "*")))
    return formula.format(**values), text


def small_sum(source: Source) -> Turn:
    """A sum that needs no calculator."""
    rng = source.rng
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    sign, said = rng.choice((("+", "plus"), ("-", "minus")))
    a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
    value = a + b if sign == "+" else a - b
    forms = (
        *(f"What is {a} {sign} {b}?", f"What is {a} {said} {b}?", f"{a} {sign} {b}"),
        *(f"How much is {a} {said} {b}?", f"{a}{sign}{b}=?", f"Tell me {a} {said} {b}."),
        *(f"What's {a} {sign} {b}?", f"Calculate {a} {sign} {b}.", f"and {a} {said} {b}?"),
    )
    return Turn(rng.choice(forms), f"{a} {sign} {b} = {value}.")


def _numbers(rng: Random) -> tuple[int, int, int]:
    low, high = rng.choice(((2, 20), (2, 99), (11, 99), (100, 999), (1000, 99999)))
    low2, high2 = rng.choice(((2, 12), (2, 99), (11, 99), (100, 999)))
    return rng.randint(low, high), rng.randint(low2, high2), rng.randint(2, 50)
