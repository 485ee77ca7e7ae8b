"""Arguments of short dialogs, and results of several values."""

from random import Random
from typing import Any

from examples.tiny_data.fillers import COLORS
from examples.tiny_data.tool_kinds import NUMBERS as RANGES
from examples.tiny_data.tool_kinds import of_kind
from examples.tiny_data.tool_prompts import Result, done, failure, fields, returned
from examples.tiny_data.turns import Source

NUMBERS = {*RANGES}
_UNITS = """degrees meters miles kilos grams euros dollars percent liters hours minutes seconds days
km/h points people rooms seats pages boxes cm feet volts""".split()
_KEYS = """temperature wind humidity price size weight height speed distance duration total count
amount age depth level score power rent salary wind_speed travel_time full_price
water_level""".split()
_TEXT_KEYS = """status color owner city name day time title code room driver gate platform mood sky
author language first_name next_stop country shape material winner""".split()
_KIND_OF = {
    **{"city": "town", "next_stop": "town", "country": "land", "owner": "person", "name": "person"},
    **{"driver": "person", "author": "person", "winner": "person", "first_name": "person"},
    **{"status": "state", "color": "color", "day": "day", "time": "time", "title": "title"},
    **{"code": "code", "room": "room", "sky": "sky", "language": "lang", "gate": "code"},
}


def some(source: Source, kind: str) -> Any:
    """An argument of a kind, as it stands in the request."""
    rng = source.rng
    if kind == "bool":
        return rng.random() < 0.5
    if kind in ("list", "people"):
        people = kind == "people"
        made = [
            some(source, "person") if people else _words(source, rng.choice((1, 1, 2)))
            for _ in range(rng.choice((1, 2, 2, 3, 3, 4)))
        ]
        return list(dict.fromkeys(made))
    if kind == "words":
        return _words(source, rng.choice((1, 1, 1, 2, 2, 3)))
    if kind == "text" and rng.random() < 0.7:
        return _words(source, rng.choice((1, 2, 3, 4, 5)))
    if kind == "text":
        return of_kind(source, "msg")
    if kind == "room" and rng.random() < 0.4:
        return f"{rng.choice(source.words).lower()} {rng.choice(('room', 'hall', 'house', 'hut'))}"
    if kind in ("device", "thing", "job_name", "lang", "color") and rng.random() < 0.4:
        word = rng.choice(source.words).lower()
        return word.capitalize() if kind == "lang" else word
    if kind == "title" and rng.random() < 0.5:
        return _words(source, rng.choice((1, 2, 3))).title()
    return of_kind(source, kind)


def _words(source: Source, count: int) -> str:
    """Words that do not belong together, so that there is nothing to guess."""
    rng = source.rng
    made = [rng.choice(source.words).lower() for _ in range(count)]
    if count > 1 and rng.random() < 0.4:
        made[0] = rng.choice((*COLORS, "new", "old", "big", "small", "cold", "last", "first"))
    if count > 2 and rng.random() < 0.4:
        made[1] = rng.choice(("of", "with", "without", "for", "at"))
    return " ".join(made)


def type_of(rng: Random, kind: str) -> dict[str, Any]:
    """The JSON schema of a kind."""
    if kind == "bool":
        return {"type": "boolean"}
    if kind in ("list", "people"):
        return {"type": "array", "items": {"type": "string"}}
    if kind in NUMBERS:
        return {"type": rng.choice(("integer", "integer", "number"))}
    if "|" not in kind:
        return {"type": "string"}
    values = kind.split("|")
    way = rng.random()
    if way < 0.5:
        return {"type": "string", "enum": values}
    said = f"{', '.join(values[:-1])} or {values[-1]}"
    if way < 0.8:
        return {"type": "string", "description": said}
    return {"type": "string", "description": rng.choice(("One of: {}", "Either {}", "May be {}"))
            .format(said)}  # fmt: skip


def result(source: Source, name: str, is_question: bool) -> Result:
    """What comes of a call: often an object of one to four values, with units."""
    rng = source.rng
    chance = rng.random()
    if chance < 0.06:
        return failure(rng)
    if chance < 0.4 and not is_question:
        return done(rng, "Done.")
    if chance < 0.5:
        value = of_kind(source, rng.choice(("int", "word", "color", "code", "town", "decimal")))
        return returned(rng, name, value, "The result is {r}.")
    if chance < 0.6:
        amount, unit = rng.randint(2, 400), rng.choice(_UNITS)
        key = rng.choice(_KEYS)
        content = {key: amount, rng.choice(("unit", "units")): unit}
        made = fields(rng, content)
        said = key.replace("_", " ")
        return Result(made.content, f"The {said} is {amount} {unit}.")
    return fields(rng, {key: _value(source, key) for key in _keys(source)})


def _keys(source: Source) -> list[str]:
    rng = source.rng
    made = rng.sample(_KEYS + _TEXT_KEYS, rng.choice((1, 2, 2, 2, 3, 3, 4)))
    if rng.random() < 0.4:
        made[0] = rng.choice(source.words).lower()
    return list(dict.fromkeys(made))


def _value(source: Source, key: str) -> Any:
    rng = source.rng
    if key in _KIND_OF:
        return of_kind(source, _KIND_OF[key])
    if key in _TEXT_KEYS or (key not in _KEYS and rng.random() < 0.5):
        return _words(source, rng.choice((1, 1, 2)))
    amount: float = rng.randint(2, 999)
    if rng.random() < 0.15:
        amount = round(rng.uniform(0.1, 90), 1)
    return f"{amount} {rng.choice(_UNITS)}" if rng.random() < 0.6 else amount
