"""Short dialogs with tools: one or two functions and a request that is worded freely.

What fills an argument is found by its place among prepositions, by the words of the parameter, or
by nothing but its kind, and is copied: nothing else leads to the right call.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from examples.tiny_data.tool_made_up import NOUNS, QUALITIES, VERBS, third_person
from examples.tiny_data.tool_prompts import call_text, listed
from examples.tiny_data.tool_short_values import NUMBERS, some, type_of
from examples.tiny_data.tool_table import as_order, camel, tool
from examples.tiny_data.turns import Source, capital, forms
from llama.dialog import Tool

_BEFORE = forms(
    """
    Please {} / Could you {} / Can you {} / Would you {} / Hi, {} / Hello! {} / Hey, {} / Now {}
    Good morning. {} / Quick one: {} / I am in a hurry. {} / So, {} / OK, {} / Next: {} / Well, {}
    My hands are full. {} / I have guests tonight. {} / We are late. {} / One more thing: {}
    My mother asks for it: {} / Be so kind: {} / Let's see: {} / Listen: {} / Hey there, {}
    """.replace(" / ", "\n")
)
_AFTER = forms(
    """
    please / thanks / Thank you! / Thanks. / I need it today. / My boss wants it. / It is urgent.
    Can you do that? / if you can / now / It would help me a lot. / We have no time. / ok? / pls
    I can't do it myself. / I forgot it yesterday. / That would be great. / cheers / right away
    """.replace(" / ", "\n")
)
_NAMED = forms(
    """
    with {p} {v} / with the {p} {v} / {p} {v} / {p}: {v} / {p} = {v} / using {p} {v} / {v} as {p}
    with {v} as the {p} / the {p} is {v} / the {p} should be {v} / use {v} for the {p}
    and {v} as {p} / {p} "{v}" / with "{v}" as {p} / take {v} as the {p} / where {p} is {v}
    make the {p} {v} / set {p} to {v} / {v} is the {p} / ({p} {v}) / my {p} is {v} / and {p} {v}
    """.replace(" / ", "\n")
)
_ORDERS: tuple[str, ...] = (
    "{v} the {n}",
    "{v} the {n}",
    "{v} my {n}",
    "{v} {n}",
    "I want to {v} the {n}",
    "I need to {v} the {n}",
    "the {n}: {v} it",
    "let us {v} our {n}",
    "{n} {v}",
)
_ASKS: tuple[str, ...] = (
    "what is the {n}",
    "tell me the {n}",
    "find the {n}",
    "which {n} is it",
    "the {n}",
    "I need the {n}",
    "do you know the {n}",
    "look up the {n}",
    "how about the {n}",
    "I'd like to know the {n}",
    "show me the {n}",
    "give me the {n}",
    "{n}",
)
_KINDS = """person person town town words words words text title word word time day code file room
thing color lang int int small percent list list people bool enum enum phone folder""".split()
_AGAIN = (
    "And {}?",
    "What about {}?",
    "and {}",
    "Now {}.",
    "How about {}?",
    "The same, but {}.",
    "And now {}?",
    "Again, but {}.",
    "And what about {}?",
    "{} too",
    "Then {}.",
)


@dataclass(frozen=True)
class Slot:
    """A parameter and the ways to say what it is to be."""

    name: str
    kind: str
    says: tuple[str, ...]
    optional: bool = False
    first: bool = False  # said at once after the verb
    about: str = ""


@dataclass(frozen=True)
class Function:
    """A function as it is offered, and the beginnings of requests for it."""

    name: str
    description: str
    starts: tuple[str, ...]
    slots: tuple[Slot, ...]
    is_made_up: bool = False

    def words(self) -> set[str]:
        """What tells it from others."""
        plain = re.findall(r"[a-z]+", f"{self.name} {self.description} {self.starts}".lower())
        return set(plain) - _COMMON

    def definition(self, source: Source) -> Tool:
        """What the prompt says of it."""
        rng, properties = source.rng, dict[str, Any]()
        short = rng.random() < 0.35
        for slot in self.slots:
            schema = type_of(rng, slot.kind)
            if slot.about:
                schema["description"] = slot.about
            elif not short and "description" not in schema:
                said = slot.name.replace("_", " ")
                schema["description"] = rng.choice((f"The {said}", said, capital(said)))
            properties[slot.name] = schema
        required = [slot.name for slot in self.slots if not slot.optional]
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if required:
            parameters["required"] = required
        said = self.description if rng.random() < 0.6 else as_order(self.description)
        return tool(self.name, said + rng.choice(("", ".")), parameters)


_COMMON = set(
    """a the of it is to get my i me set what how in on or and tell us we please you your our want
    need for find give do make does s one gets somebody person thing place up
    """.split()
)


def _word(source: Source) -> str:
    """A word as names in code have it."""
    return source.rng.choice(source.words).lower().replace(" ", "_")


@cache
def scenes() -> tuple[tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]], ...]:
    """The functions of the table: names, description, beginnings of requests, parameters."""
    made = []
    for line in Path(__file__).with_name("tool_short.txt").read_text().splitlines():
        names, said, starts, *slots = line.split("; ")
        made.append((tuple(names.split()), said, tuple(starts.split(" / ")), tuple(slots)))
    return tuple(made)


def of_table(source: Source) -> Function:
    """A function of the table under one of its names."""
    rng = source.rng
    names, said, starts, slots = rng.choice(scenes())
    made = list[Slot]()
    for text in slots:
        names_of, kind, *ways = text.split(":", 2)
        name = rng.choice(names_of.strip("!?").split("~"))
        about = ""
        if rng.random() < 0.1:
            about, name = f"The {name}", _word(source)
        says = tuple(ways[0].split(",")) if ways else ()
        if name in [slot.name for slot in made]:
            name = names_of.strip("!?").split("~")[0]
        made.append(Slot(name, kind, says, names_of[0] == "?", names_of[0] == "!", about))
    name = rng.choice(names)
    if rng.random() < 0.12:
        name = _word(source)
    if rng.random() < 0.3:
        kept = [slot for slot in made if not slot.optional]
        made = kept
    return Function(camel(name) if rng.random() < 0.15 else name, said, starts, tuple(made))


def made_up(source: Source, like: Function | None = None) -> Function:
    """A function of a verb and a noun; one that is `like` another shares one of the two."""
    rng = source.rng
    asks = rng.random() < 0.3
    verb = rng.choice(VERBS) if rng.random() < 0.5 else _word(source)
    noun = rng.choice(QUALITIES if asks else NOUNS)
    if rng.random() < 0.5:
        noun = _word(source)
    if like is not None:
        old = re.sub(r"^\S+ (the )?", "", like.description)
        first = like.description.split()[0].lower()
        if not asks and rng.random() < 0.5 and " " not in old:
            noun = old
        elif not asks and first not in ("gets", "says"):
            verb = as_order(f"{first} x").split()[0]
    if verb.endswith(("ing", "ed", "s")) or verb == noun:
        verb = rng.choice([each for each in VERBS if each != noun])
    slots = like.slots if like is not None and rng.random() < 0.5 else _slots(source, verb, noun)
    starts: tuple[str, ...]
    if asks:
        name = rng.choice((f"get_{noun}", f"{noun}_of", noun, f"find_{noun}"))
        said, starts = f"{rng.choice(('Gets', 'Says'))} the {noun}", _ASKS
    else:
        name, said, starts = f"{verb}_{noun}", f"{capital(third_person(verb))} the {noun}", _ORDERS
    if rng.random() < 0.2:
        name = _word(source)
    starts = tuple(each.replace("{v}", verb).replace("{n}", noun) for each in starts)
    return Function(camel(name) if rng.random() < 0.15 else name, said, starts, slots, True)


def _slots(source: Source, *taken: str) -> tuple[Slot, ...]:
    """One to three parameters; two of one kind are told from each other by their names alone."""
    rng, made = source.rng, list[Slot]()
    count = rng.choice((1, 1, 2, 2, 2, 3))
    kinds = rng.choices(_KINDS, k=count)
    if count > 1 and rng.random() < 0.5:
        kinds[1] = kinds[0]
    known = set(taken)
    for kind in kinds:
        name = about = _word(source)
        if rng.random() < 0.3:
            name = about = rng.choice(NOUNS + QUALITIES)
        if name in known:
            continue
        known.add(name)
        if rng.random() < 0.2:
            name = f"{rng.choice('abpqx')}{len(made) + 1}"
        if kind == "enum":
            kind = "|".join(dict.fromkeys(rng.choices(source.words, k=rng.randint(2, 4)))).lower()
            kind = "on|off" if "|" not in kind else kind
        said = rng.sample(_NAMED, 6) if kind != "bool" else ()
        says = tuple(each.replace("{p}", about).replace("{v}", "{}") for each in said)
        shown = "" if name == about else f"The {about}"
        made.append(Slot(name, kind, says, rng.random() < 0.12 and bool(made), False, shown))
    return tuple(made)


@dataclass(frozen=True)
class Request:
    """What is asked for and the arguments that it gives."""

    text: str
    function: Function
    values: dict[str, Any]

    def call(self) -> str:
        return call_text(self.function.name, self.values)


def request(source: Source, function: Function) -> Request:
    """A request in free wording: the arguments in any order, before and after the verb."""
    rng = source.rng
    lower = rng.random() < 0.15
    values, said = dict[str, Any](), dict[str, str]()
    for slot in function.slots:
        if slot.optional and rng.random() < 0.5:
            continue
        value = _other(source, slot.kind, values)
        if lower and "|" not in slot.kind:
            value = _lower(value)
        values[slot.name], said[slot.name] = value, _said(source, slot, value)
    close = [said[slot.name] for slot in function.slots if slot.first and slot.name in said]
    free = [said[s.name] for s in function.slots if not s.first and s.name in said]
    rng.shuffle(free)
    body = [rng.choice(function.starts), *close]
    if free and body[0][-1] != ":" and rng.random() < 0.2:
        first = free.pop()
        comma = "" if first[0] in ":(" else ","
        body = [first.lstrip(": ") + comma, *body]
    glue = rng.choice((" ", " ", ", ", ", ")) if len(free) > 1 else " "
    text = " ".join(body)
    if free:
        text += rng.choice((" ", " ", " ", ", ")) + glue.join(free)
    text = re.sub(r",? +:|:,", ":", text.replace(", ,", ","))
    starts = [each for v in values.values() for each in (v if isinstance(v, list) else [v])]
    keeps = text.startswith(tuple(map(str, starts)))
    return Request(_around(source, text, lower, keeps), function, values)


def _other(source: Source, kind: str, values: dict[str, Any]) -> Any:
    """A value that none of the others contains, nor is contained in; the last of many tries."""
    for _ in range(20):
        value = some(source, kind)
        if not any(_alike(value, other) for other in values.values()):
            break
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return False
    return str(one).lower() in str(other).lower() or str(other).lower() in str(one).lower()


def _lower(value: Any) -> Any:
    if isinstance(value, list):
        return [each.lower() for each in value]
    return value.lower().removeprefix("the ") if isinstance(value, str) else value


def _said(source: Source, slot: Slot, value: Any) -> str:
    """The argument with its preposition, or with the words of its parameter."""
    rng, name = source.rng, slot.about.removeprefix("The ") or slot.name.replace("_", " ")
    if isinstance(value, bool):
        ways = ("with {}", "with {} on", "{}: yes", "and {} please", "{} it should be")
        if not value:
            ways = ("without {}", "with {} off", "{}: no", "but no {}", "not {}")
        return rng.choice(ways).replace("{}", name)
    shown = str(value)
    if isinstance(value, list):
        shown = rng.choice((listed(value), ", ".join(value), " and ".join(value)))
    elif slot.kind not in NUMBERS and "|" not in slot.kind and rng.random() < 0.1:
        shown = f'"{shown}"'
    says = slot.says
    if isinstance(value, list):
        says = tuple(each for each in says if not each.startswith("and ") and '"' not in each)
    way = rng.choice(says or ("{}",))
    if not slot.first and not isinstance(value, list) and rng.random() < 0.12:
        way = rng.choice(_NAMED).replace("{p}", name).replace("{v}", "{}")
    text = way.replace("{}", shown)
    if isinstance(value, int) and value == 1:
        text = re.sub(r"\b1 (\w+)s\b", r"1 \1", text)
    return text.replace('""', '"')


def _around(source: Source, text: str, lower: bool, keeps: bool) -> str:
    """The request with a greeting, a reason, an end or none, in small letters or not."""
    rng = source.rng
    asks = re.match(r"(what|how|who|whose|which|will|is|do)\b", text)
    if rng.random() < 0.35:
        start = rng.choice(_BEFORE)
        if start.split()[0] in ("Please", "Could", "Can", "Would") and (
            asks or re.match(r"(I|it|we|let|the|lights?|on|in|at|with|\d)\b", text)
        ):
            start = "Hello! {}"
        if start[-4] in ".!" and not keeps:
            text = capital(text)
        keeps = keeps and start.startswith("{")
        asks = asks or re.match(r"Could|Can|Would", start)
        text = start.replace("{}", text)
    text = text if lower or keeps or rng.random() < 0.2 else capital(text)
    end = rng.choice(("?", "?", "")) if asks else rng.choice((".", ".", "!", ""))
    stop = "." if text[-1] not in ".?!" else ""
    end = end if stop else ""
    if rng.random() < 0.15:
        after = rng.choice(_AFTER)
        text = (
            f"{text}, {after.rstrip('?')}{end}"
            if after[0].islower()
            else f"{text}{end or stop} {after}"
        )
    elif rng.random() < 0.8:
        text += end
    return text.lower() if lower else text


def again(source: Source, asked: Request) -> Request | None:
    """The same with another value, of which nothing else is said."""
    rng, function = source.rng, asked.function
    slots = [slot for slot in function.slots if slot.name in asked.values and slot.kind != "bool"]
    if not slots:
        return None
    slot = rng.choice(slots)
    if slot.first and any(one is not slot and one.kind == slot.kind for one in slots):
        return None  # a bare value could be either
    value = _other(source, slot.kind, asked.values)
    if value == asked.values[slot.name]:
        return None
    said = _said(source, slot, value).lstrip(": ").removeprefix("and ")
    if len(asked.values) == 1 and not isinstance(value, list) and rng.random() < 0.4:
        said = str(value)
    text = rng.choice(_AGAIN).replace("{}", said)
    text = text.removesuffix(".") if text.endswith("..") else text
    if not text.startswith((str(value), "and ")):
        text = capital(text)
    return replace(asked, text=text, values={**asked.values, slot.name: value})


def functions(source: Source) -> list[Function]:
    """One to three functions that differ by their words."""
    rng = source.rng
    count = rng.choice((1, 1, 1, 2, 2, 2, 3))
    made = list[Function]()
    while len(made) < count:
        if rng.random() < 0.5:
            each = of_table(source)
        else:
            like = made[0] if made and made[0].is_made_up and rng.random() < 0.6 else None
            each = made_up(source, like)
        clash = any(
            each.name == other.name
            or each.description == other.description
            or (not (each.is_made_up and other.is_made_up) and each.words() & other.words())
            for other in made
        )
        if not clash:
            made.append(each)
    return made
