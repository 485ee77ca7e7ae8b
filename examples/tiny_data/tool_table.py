"""The tools of tools.txt: their definitions, what is asked of them, and what they return."""

import operator
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from examples.tiny_data.tool_kinds import NUMBERS, of_kind, word
from examples.tiny_data.tool_prompts import Result, done, failure, fields, returned
from examples.tiny_data.turns import Source, capital
from llama.dialog import Tool

_LINE = re.compile(r"(\w+)\((.*)\)(!?) (.+)")
_HOLE = re.compile(r"\{(\w+)\}")
_FIXED = re.compile(r" ?\[(\w+)=(\w+)\]$")
_NOT_ORDERS = set(
    """a am and are at be can closest did distance do does drone for gate heads how
    i i'd i'm in is it let's label may my next no one robot sprinkler surname that the there this
    we what what's blinds don't please task ticket when where
    which who has here will flat fan wifi weather any""".split()
)
_WRAPS = (
    *("Please {}.", "Please {}.", "Could you {}?", "Can you {}?", "Could you please {}?"),
    *("Would you {}?", "I'd like you to {}.", "I want you to {}.", "{C}, please.", "{C} please"),
    *("Hey, {}.", "Now {}.", "{C}. Thanks!", "{C} now.", "Can you {} for me?", "Hi! {C}."),
    *("Would you mind? {C}.", "Will you {}?", "Be so kind and {}.", "{C}, will you?", "pls {}"),
)
_STARTS = (
    *("Quick question: ", "Tell me, ", "Hello! ", "Hi, ", "Hey, ", "Excuse me, ", "Hi there. "),
    *("OK, ", "Now: ", "Next: ", "So, ", "One thing: ", "Good morning. ", "Please help me: "),
)
_ENDS = (" Thanks!", " Thank you.", " Please.", " It is urgent.", " Can you help?", " thx")
_SYNONYMS = {
    "city": "town location place city_name where",
    "location": "city place town where",
    "place": "city location town",
    "to": "recipient receiver person",
    "text": "message content body input",
    "message": "text content msg body",
    "name": "full_name person who title",
    "time": "at when clock_time",
    "day": "weekday date when",
    "query": "q search question term",
    "path": "file filename file_path",
    "id": "number identifier key",
    "amount": "value sum quantity",
    "word": "term w text",
    "title": "name label",
    "room": "area zone where",
    "number": "n value num",
    "destination": "target to_place end",
}
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}
_MEANINGS = {
    "town": "Name of the town",
    "person": "Name of the person",
    "time": "The time, such as 7:30",
    "day": "The day of the week",
    "date": "The date",
    "file": "Name of the file",
    "lang": "The language",
}


# Words of names of tools, any of which could do what another is asked.
_ALIKE = tuple(
    tuple(line.split())
    for line in """
    time clock date zone
    weather forecast temperature wind air snow
    call dial phone contact number
    alarm snooze remind reminder todo todos task event events timer note notes appointment invite
    light device fan toggle switch vacuum on off
    play song music radio artist genre movie playing
    currency exchange crypto stock
    price products product cart food pizza shopping order buy checkout item
    email emails unread message sms mail postcard
    file files document folder download upload backup copy
    robot grab drop room drone move
    travel route distance train bus flight flights taxi nearby parking
    book books table restaurant menu recipe
    user users employee salary contact database row rows table
    define synonym translate word language
    server service logs state status tests
    variable set
    """.strip().splitlines()
)


@dataclass(frozen=True)
class Case:
    """A request, the call that it needs, and what comes of it."""

    request: str
    name: str
    arguments: Mapping[str, Any]
    result: Result


class Offered(Protocol):
    """A tool as a dialog offers it."""

    @property
    def definition(self) -> Tool:
        """What the prompt says of it."""

    def case(self, source: Source) -> Case:
        """A request for it."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool: its name, and the kind of its arguments."""

    name: str
    kind: str
    optional: bool = False

    def schema(self, rng: random.Random, name: str) -> dict[str, Any]:
        """Its JSON schema, described or not."""
        kind: dict[str, Any] = {"type": "string"}
        if self.kind == "bool":
            kind["type"] = "boolean"
        elif self.kind in NUMBERS:
            kind["type"] = rng.choice(("integer", "integer", "number"))
        elif "|" in self.kind:
            kind["enum"] = self.kind.split("|")
        if rng.random() < 0.6:
            said = name.replace("_", " ")
            meanings = [f"The {said}", capital(said), _MEANINGS.get(self.kind, f"The {said}")]
            kind["description"] = rng.choice(meanings)
        return kind


@dataclass(frozen=True)
class Ability:
    """A line of the table."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    result: str  # the kind of it; empty for an action
    answer: str
    own_skill: bool  # it does what the model can do without tools

    def words(self) -> set[str]:
        """What tells it from other tools."""
        words = set(self.name.split("_"))
        groups = {group[0] for group in _ALIKE if words & set(group)}
        return groups | words - {"get", "my", "name", "of", "a", "with", "day", "in"}

    def offered(self, source: Source) -> "OfferedAbility":
        """Under its own name or another, written in one of several ways."""
        rng = source.rng
        name = self.name
        if rng.random() < 0.1:
            name = f"{word(source)}_{word(source)}" if rng.random() < 0.5 else word(source)
        names = dict[str, str]()
        for parameter in self.parameters:
            renamed = parameter.name
            if rng.random() < 0.25 and renamed in _SYNONYMS:
                renamed = rng.choice(_SYNONYMS[renamed].split())
            elif rng.random() < 0.06:
                renamed = word(source)
            if renamed in names.values():
                renamed = parameter.name
            names[parameter.name] = renamed
        style = rng.random()
        if style < 0.15:
            name, names = camel(name), {key: camel(value) for key, value in names.items()}
        elif style < 0.2:
            name = name.replace("_", ".", 1)
        elif style < 0.23:
            name = name.replace("_", "-")
        properties = {names[p.name]: p.schema(rng, names[p.name]) for p in self.parameters}
        required = [names[p.name] for p in self.parameters if not p.optional]
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if required or rng.random() < 0.3:
            schema["required"] = required
        end = rng.choice(("", "", "."))
        said = self.description if rng.random() < 0.6 else as_order(self.description)
        return OfferedAbility(tool(name, said + end, schema), self, names)


@dataclass(frozen=True)
class OfferedAbility:
    """An ability, and what its parameters are called in the definition."""

    definition: Tool
    ability: Ability
    names: Mapping[str, str]

    def case(self, source: Source) -> Case:
        rng, ability = source.rng, self.ability
        template = rng.choice(ability.requests)
        values: dict[str, Any] = {}
        if fixed := _FIXED.search(template):
            values[fixed[1]] = fixed[2] == "true"
            template = template[: fixed.start()]
        asked = set(_HOLE.findall(template))
        for parameter in ability.parameters:
            if parameter.name in asked:
                value = of_kind(source, parameter.kind)
                while value in values.values():
                    value = of_kind(source, parameter.kind)
                values[parameter.name] = value
        request = _HOLE.sub(lambda hole: str(values[hole[1]]), worded(rng, template))
        order = [p.name for p in ability.parameters if p.name in values]
        arguments = {self.names[key]: values[key] for key in order}
        name = self.definition["function"]["name"]
        answer = _HOLE.sub(lambda h: str(values.get(h[1], h[0])), ability.answer)
        return Case(request, name, arguments, self._result(source, name, values, answer))

    def _result(self, source: Source, name: str, values: Mapping[str, Any], answer: str) -> Result:
        rng = source.rng
        if rng.random() < 0.12:
            return failure(rng)
        if not self.ability.result:
            return done(rng, answer)
        if self.ability.name in _TWO:
            value = round(_TWO[self.ability.name](values["a"], values["b"]), 4)
            return returned(rng, name, value, answer)
        if rng.random() < 0.1 and not self.ability.own_skill:
            count = rng.randint(2, 3)
            keys = rng.sample(tuple(FIELDS), count)
            return fields(rng, {key: of_kind(source, FIELDS[key]) for key in keys})
        key = self.ability.name.split("_")[-1]
        return returned(rng, name, of_kind(source, self.ability.result), answer, key)


FIELDS = {
    "temperature": "degrees",
    "sky": "sky",
    "wind": "wind",
    "price": "price",
    "size": "size",
    "color": "color",
    "status": "state",
    "time": "time",
    "name": "person",
    "city": "town",
    "count": "small",
    "total": "int",
    "day": "day",
    "title": "title",
    "code": "code",
    "distance": "length",
    "humidity": "percent",
    "owner": "person",
}


def tool(name: str, description: str, schema: dict[str, Any]) -> Tool:
    """A definition in OpenAI's shape."""
    function = {"name": name, "description": description, "parameters": schema}
    if not description:
        del function["description"]
    return {"type": "function", "function": function}  # type: ignore[typeddict-item]


def as_order(description: str) -> str:
    """ "Gets the time" as "Get the time"."""
    verb, _, rest = description.partition(" ")
    if verb.endswith("ies"):
        verb = f"{verb[:-3]}y"
    elif verb.endswith(("ches", "shes", "sses", "xes")):
        verb = verb[:-2]
    else:
        verb = verb.removesuffix("s")
    return f"{verb} {rest}"


def camel(name: str) -> str:
    """get_weather as getWeather."""
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


def worded(rng: random.Random, template: str) -> str:
    """A request with courtesies, in small letters, without its end, or misspelled, or as it is."""
    text = template
    chance = rng.random()
    if chance < 0.4 and is_order(text):
        wrap = rng.choice(_WRAPS)
        inner = text[0].lower() + text[1:-1]
        text = wrap.replace("{}", inner).replace("{C}", text[:-1])
    elif chance < 0.55:
        start = rng.choice(_STARTS if "?" in text else _STARTS[2:])
        keep = text.startswith(("{", "I ", "I'")) or start[-2] in ".!"
        text = start + (text if keep else text[0].lower() + text[1:])
    if rng.random() < 0.08 and text[-1] in ".?!}":
        text = (text if text[-1] in ".?!" else f"{text}.") + rng.choice(_ENDS)
    elif rng.random() < 0.12 and text[-1] in ".?!":
        text = text[:-1]
    if rng.random() < 0.1 and not text.startswith(("{", "I ", "I'")):
        text = text[0].lower() + text[1:]
    return misspelled(rng, text) if rng.random() < 0.05 else text


def is_order(template: str) -> bool:
    """Whether it is one sentence that begins with a verb: "Play {title}."."""
    first = template.split()[0].lower().strip(",.!")
    return (
        template[0].isupper()
        and template.endswith(".")
        and not re.search(r"[.?!:,;] ", template)
        and first not in _NOT_ORDERS
        and not template.endswith(" please.")
    )


def misspelled(rng: random.Random, template: str) -> str:
    """With two letters changed round in a word that is no argument."""
    places = [match.start() for match in re.finditer(r"(?<![\w{])[a-z]{5,}(?![\w}])", template)]
    if not places:
        return template
    place = rng.choice(places) + rng.randint(1, 2)
    return template[:place] + template[place + 1] + template[place] + template[place + 2 :]


def _abilities(text: str) -> tuple[Ability, ...]:
    lines = text.strip().splitlines()
    made = []
    for head, asks, returns in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        match = _LINE.fullmatch(head)
        if not match or not asks.startswith("? ") or not returns.startswith("= "):
            raise ValueError(f"not a tool of the table: {head}")
        parameters = []
        for part in filter(None, match[2].split(", ")):
            name, kind = part.split(":")
            parameters.append(Parameter(name.rstrip("?"), kind, name.endswith("?")))
        result, answer = returns[2:].split("|", 1)
        requests = tuple(asks[2:].split(" / "))
        made.append(
            Ability(
                *(match[1], match[4], tuple(parameters), requests),
                *(result.strip(), answer.strip(), bool(match[3])),
            )
        )
    return tuple(made)


ABILITIES = _abilities(Path(__file__).with_name("tools.txt").read_text())
