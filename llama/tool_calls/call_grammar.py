"""Grammars by which an answer has to call functions, or has to call them rightly if it does.

    rules = call_grammar(tools, [], is_required=True, tool_format="json", parallel=True)
    Sequence(prompt, grammar=Grammar(lark=rules))

The rules are Lark's with llguidance's extensions: `%json` for schemas, special tokens by name, and
`&` and `~` in terminals. Arguments have the white space that the models were trained with, so an
answer can't fill up with it.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from llama.dialog import PYTHON_TAG, Tool, ToolFormat

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KEY = re.compile(r"\w+", re.ASCII)
_ANNOTATIONS = ("$defs", "definitions", "title", "description", "$schema", "$id")
# Of schemas that say more of an object than of its properties one by one.
_WHOLE_OBJECT = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties")


class _Form(NamedTuple):
    """Patterns around the arguments of calls. In a pattern NAME is a function's name.

    What precedes the arguments is one terminal: while text is possible too, the lexer would take
    a shorter one for text.
    """

    label: str
    first: str  # before the arguments of the first call
    later: str  # and of later ones
    last: str = ""  # after the last call


# As the models write calls, and as they may write them where text is allowed too.
_S = r"[ \n\r\t]{0,8}"
_JSON_CALL = r'\{"name": "NAME", "parameters": '
_ANY_JSON_CALL = (
    rf'{_S}\{{{_S}("type"{_S}:{_S}"function"{_S},{_S})?"name"{_S}:{_S}"NAME"{_S},{_S}'
    rf'"(parameters|arguments)"{_S}:{_S}'
)
_PYTHONIC = _Form("pythonic", r"\[NAME\(", r", NAME\(", r"\]")
_ANY_PYTHONIC = _Form("pythonic", rf"{_S}\[{_S}NAME\(", rf"{_S},{_S}NAME\(", rf"{_S}\]")
_JSON = _Form("bare", _JSON_CALL, f"; {_JSON_CALL}")
_ANY_JSON = (
    _Form("bare", _ANY_JSON_CALL, f"{_S};?{_ANY_JSON_CALL}"),
    _Form("list", rf"{_S}\[{_ANY_JSON_CALL}", f"{_S},{_ANY_JSON_CALL}", rf"{_S}\]"),
)


def call_grammar(
    tools: Sequence[Tool],
    builtin_tools: Sequence[str],
    *,
    is_required: bool,
    tool_format: ToolFormat,
    parallel: bool,
    has_tag: bool = True,
) -> str:
    """Lark rules for an answer that is calls, or is text or calls unless that `is_required`.

    Text can't begin as a call does: what begins as one goes on as one. Arguments match the schema
    of their function. Keywords of a schema that llguidance does not support are an error for a
    `strict` function once the rules are used, and are ignored for others. Without `parallel` there
    is one call. `has_tag` is whether the tokenizer has `<|python_tag|>`.
    """
    names = [re.escape(tool["function"]["name"]) for tool in tools]
    schemas = [_schema(tool) for tool in tools]
    arguments = [_pythonic_arguments(f"args{i}", schema) for i, schema in enumerate(schemas)]
    if tool_format == "pythonic" and None not in arguments:
        rules = [rule for lines in arguments for rule in lines or ()]
        forms: tuple[_Form, ...] = (_PYTHONIC,) if is_required else (_ANY_PYTHONIC,)
    else:
        end = _terminal(r"\}" if is_required else rf"{_S}\}}")
        rules = [f"args{i}: %json {json.dumps(s)} {end}" for i, s in enumerate(schemas)]
        forms = (_JSON,) if is_required else _ANY_JSON
    calls = []
    for form in forms if tools else ():
        for kind, pattern in (("first", form.first), ("later", form.later)):
            openings = [_terminal(pattern.replace("NAME", name)) for name in names]
            each = [f"{opening} args{i}" for i, opening in enumerate(openings)]
            rules.append(f"{form.label}_{kind}: {' | '.join(each)}")
        later = f" {form.label}_later*" if parallel else ""
        last = f" {_terminal(form.last)}" if form.last else ""
        calls.append(f"{form.label}_first{later}{last}")
    builtin = [rf'/{name}\.call\(query=/ %json {{"type": "string"}} ")"' for name in builtin_tools]

    answers = list(calls)
    if has_tag:
        tag = PYTHON_TAG if is_required else f"text? {PYTHON_TAG}"
        answers += [f"{tag} {call}" for call in (*calls, *builtin)]
    if not is_required:
        answers.append("text?")
        rules += ["text: TEXT", f"TEXT: {_text_terminal(names)}"]
    return "\n".join([f"start: {' | '.join(answers)}", *rules])


def call_or_answer_schema(tools: Sequence[Tool], answer: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema for an answer that is one call in JSON form, or matches the schema `answer`."""
    schemas: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        parameters = _moved(_schema(tool), f"#/anyOf/{i}/properties/parameters")
        parameters.pop("x-guidance")
        properties = {"name": {"const": tool["function"]["name"]}, "parameters": parameters}
        call = {"type": "object", "properties": properties, "required": [*properties]}
        schemas.append({**call, "additionalProperties": False})
    answer = _moved(answer, f"#/anyOf/{len(schemas)}")
    options: dict[str, Any] = {
        key: answer.pop(key) for key in ("$schema", "x-guidance") if key in answer
    }
    return {**options, "anyOf": [*schemas, answer]}


def _moved(schema: Any, root: str) -> Any:
    """A copy of a schema, its references to itself for where it stands now."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _moved(value, root) for key, value in schema.items()}
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
        copy["$ref"] = root + reference[1:]
    return copy


def _terminal(pattern: str) -> str:
    return f"/{pattern.replace('/', chr(92) + '/')}/"


def _schema(tool: Tool) -> dict[str, Any]:
    """The schema that the arguments of a call follow."""
    schema: dict[str, Any] = {"type": "object", **(tool["function"].get("parameters") or {})}
    if schema.keys() <= {"type", "properties", "required", *_ANNOTATIONS}:
        # The arguments that are declared, and no others.
        declared = schema.setdefault("properties", {})
        if isinstance(declared, dict) and declared.keys() >= set(schema.get("required") or ()):
            schema["additionalProperties"] = False
    return {**schema, "x-guidance": {**_SPACING, "lenient": not tool["function"].get("strict")}}


def _pythonic_arguments(rule: str, schema: dict[str, Any]) -> list[str] | None:
    """Rules for arguments up to the parenthesis; None where they are not a list of known ones.

    `first<i>` are the arguments from number i on if none came before, `later<i>` if one did.
    """
    properties = schema.get("properties")
    is_listed = isinstance(properties, dict) and schema.get("additionalProperties") is False
    if not isinstance(properties, dict) or not is_listed or schema.keys() & {*_WHOLE_OBJECT}:
        return None
    if not all(map(_KEY.fullmatch, properties)):
        return None
    shared = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
    rules = [f'{rule}: {rule}_first0 ")"']
    for i, (key, value) in enumerate(properties.items()):
        value = {**value, **shared} if isinstance(value, dict) else shared
        rules.append(f'{rule}_value{i}: "{key}=" %json {json.dumps(value)}')
        for kind, separator in (("first", ""), ("later", '", " ')):
            alternatives = f"{separator}{rule}_value{i} {rule}_later{i + 1}"
            if key not in (schema.get("required") or ()):
                alternatives += f" | {rule}_{kind}{i + 1}"
            rules.append(f"{rule}_{kind}{i}: {alternatives}")
    return [*rules, *(f'{rule}_{kind}{len(properties)}: ""' for kind in ("first", "later"))]


def _text_terminal(names: Sequence[str]) -> str:
    """A terminal for text that the parser does not take for a call."""
    name, key = "|".join(names), '"(parameters|arguments)"'
    in_order = rf'("type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"({name})"\s*,\s*{key}(?s:.*)'
    reversed_ = rf'{key}\s*:(?s:.*)"name"\s*:\s*"({name})"(?s:.*)'
    calls = [rf"\s*\[?\s*\{{\s*({in_order}|{reversed_})", rf"\s*\[\s*({name})\((?s:.*)"]
    return "/(?s:.+)/" + "".join(f" & ~{_terminal(call)}" for call in calls if names)
