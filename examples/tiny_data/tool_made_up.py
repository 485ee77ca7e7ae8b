"""Tools that nobody has seen: their names, and their arguments, can only be copied."""

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from examples.tiny_data.tool_kinds import of_kind, word
from examples.tiny_data.tool_prompts import Result, done, failure, fields, returned
from examples.tiny_data.tool_table import FIELDS, Case, camel, tool
from examples.tiny_data.turns import Source
from llama.dialog import Tool

VERBS = """add adjust attach bake balance bend bind blend block boost break bring brush build burn
carry carve cast catch change charge check chop clamp clean clear climb close coat coil collect
color connect cook cool copy count cover crack crush cut dance deliver design dig dip double draw
dress drill drop dry dump empty enter etch examine extend fetch fill filter find finish fix flip
float fold follow form freeze fry gather glue grind grow guard hang heat hide hold hook hunt inflate
inspect iron join jump kick knit knot label launch lift light link load lock lower mark mash match
measure melt mend merge mix move nail open order pack paint park paste patch pay peel pick pin plan
plant play plow plug point polish pour press print pull pump push raise rank reach read release
remove rent repair reset rest return ride ring rinse roast roll rotate rub run save scan scrub seal
search select sell send serve set sew shake sharpen shift shine show shrink shuffle sign slice slide
smooth sort spin split spray spread squeeze stack stamp start stir stop store stretch stroke sweep
swing switch tag tap taste tear test tie tilt tip toast toggle touch trace track train trim turn
twist unfold unlock unpack update wake warm wash watch wave weave weigh weld wind wipe wrap write
zip""".split()
NOUNS = """anchor apple arch arrow badge bag ball banner barrel basket beam bell belt bench blade
block board boat bolt bottle bowl box branch brick bridge brush bubble bucket button cabin cable
cage cake candle canvas card cart castle chain chair circle clip clock cloud coat coil coin column
cookie crate crystal cube cup curtain cushion deck desk dish door drum engine fan feather fence
field flag flame flask floor flower fork frame gate gear glove grid hammer handle hat hook hose
house jar kite knob ladder lamp lantern leaf lens letter lever lid lock log loop map mask mast mat
mirror nail needle nest net oven page paddle pan panel path pedal pen pillow pipe plate pocket pole
pot pump puzzle rack raft rail ramp ribbon ring robe rocket rod roof rope rug sack sail scale
screen screw seed shade shelf shell shield shirt sign sink slide socket spool spoon spring stage
star statue stick stone stove strap string table tank tape tent tile tin token torch towel tower
toy track tray tube tunnel turbine valve vase wagon wall wheel whistle window wing wire""".split()
_COPYABLE = {
    "size": "int", "color": "color", "speed": "int", "weight": "int", "height": "int",
    "width": "int", "length_cm": "int", "depth": "int", "name": "person", "owner": "person",
    "place": "town", "city": "town", "count": "int", "times": "small", "level": "percent",
    "day": "day", "time": "time", "label": "word", "tag": "word", "mode": "word", "shape": "word",
    "material": "word", "code": "code", "target": "word", "angle": "int", "power": "percent",
    "title": "title", "file": "file", "limit": "int", "key": "code", "user": "person",
    "group": "word", "number": "int", "style": "word", "kind": "word", "pattern": "word",
}  # fmt: skip
QUALITIES = """age area balance brand capital color cost depth energy flavor height history length
level limit mass name number origin owner phase power price rank rating rhythm score shape size
smell speed status strength taste temperature total value volume weight width""".split()
_ONE = ("with {p} {v}", "with the {p} {v}", "{p} {v}", "{p}: {v}", "{p} = {v}", "using {p} {v}")
_ORDERS = (
    *("{A}{w}.", "{A}{w}.", "Please {a}{w}.", "Could you {a}{w}?", "Can you {a}{w}?", "{A}{w}"),
    *("I want you to {a}{w}.", "I need you to {a}{w}.", "Would you {a}{w}?", "Now {a}{w}."),
    *("Hi! {A}{w}.", "{A}{w}, please.", "{a}{w}", "Let's {a}{w}.", "I'd like to {a}{w}."),
    *("Hey, {a}{w}.", "It is time to {a}{w}.", "Please help me {a}{w}.", "My boss says: {a}{w}."),
)
_GETS = (
    *("What is the {n} of {v}?", "Get the {n} of {v}.", "Tell me the {n} of {v}.", "{n} of {v}"),
    *("I'd like to know the {n} of {v}.", "Find the {n} of {v}.", "Can you get the {n} of {v}?"),
    *("{v}: what is its {n}?", "Do you know the {n} of {v}?", "What's the {n} of {v}?"),
    *("Look up the {n} of {v} please.", "Show me the {n} of {v}.", "Which {n} does {v} have?"),
    *("What {n} has {v}?", "Check the {n} of {v}.", "I need the {n} of {v}.", "{n} {v}"),
)


def third_person(verb: str) -> str:
    """The verb with he, she or it."""
    if re.search(r"(s|x|z|ch|sh|o)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


@dataclass(frozen=True)
class MadeUp:
    """A tool that does something to a thing, or gets a quality of something (without a verb)."""

    definition: Tool
    verb: str
    noun: str
    kinds: dict[str, str]  # of its parameters
    names: dict[str, str]  # what the definition calls them
    required: tuple[str, ...]

    def case(self, source: Source) -> Case:
        rng = source.rng
        values: dict[str, Any] = {}
        for key, kind in self.kinds.items():
            if key in self.required or rng.random() < 0.5:
                values[key] = of_kind(source, kind)
                while list(values.values()).count(values[key]) > 1:
                    values[key] = of_kind(source, kind)
        name = self.definition["function"]["name"]
        arguments = {self.names[key]: value for key, value in values.items()}
        request = self._get(rng, values) if not self.verb else self._order(rng, values)
        return Case(request, name, arguments, self._result(source, name))

    def _get(self, rng: Random, values: dict[str, Any]) -> str:
        (value,) = values.values()
        text = rng.choice(_GETS).replace("{n}", self.noun).replace("{v}", str(value))
        return text[:-1] if rng.random() < 0.1 and text[-1] in "?." else text

    def _order(self, rng: Random, values: dict[str, Any]) -> str:
        action = f"{self.verb} {rng.choice(('the', 'the', 'the', 'a', 'my'))} {self.noun}"
        if re.search(r" a ([aeiou]|.*s$)", action):
            action = action.replace(" a ", " the ", 1)
        pairs = list(values.items())
        if rng.random() < 0.4:
            rng.shuffle(pairs)
        form = rng.choice(_ONE)
        said = [form.format(p=key.replace("_", " "), v=value) for key, value in pairs]
        if form.startswith("with {p}") and len(said) > 1:
            said[1:] = [each.removeprefix("with ") for each in said[1:]]
        elif form.startswith(("with", "using")) and len(said) > 1:
            said[1:] = [each.split(" ", 1)[1] for each in said[1:]]
        start = " " if form.startswith(("with", "using")) else ", "
        glue = " and " if start == " " and rng.random() < 0.6 else ", "
        if len(said) > 2:
            said = [", ".join(said[:-1]), said[-1]]
        text = rng.choice(_ORDERS).replace("{w}", start + glue.join(said) if said else "")
        return text.replace("{a}", action).replace("{A}", action[0].upper() + action[1:])

    def _result(self, source: Source, name: str) -> Result:
        rng = source.rng
        chance = rng.random()
        if chance < 0.1:
            return failure(rng)
        if chance < 0.25:
            keys = rng.sample(tuple(FIELDS), rng.randint(2, 3))
            return fields(rng, {key: of_kind(source, FIELDS[key]) for key in keys})
        if self.verb and chance < 0.55:
            return done(rng, "Done.")
        if chance < 0.63:
            return returned(rng, name, of_kind(source, "list"), "The results are {r}.", "items")
        kind = rng.choice(("int", "word", "color", "code", "word", "int", "decimal", "town"))
        key = rng.choice((word(source), self.noun.replace(" ", "_"), "value"))
        return returned(rng, name, of_kind(source, kind), "The result is {r}.", key)


def made_up(source: Source, like: MadeUp | None = None) -> MadeUp:
    """A tool; one that is `like` another has its verb or its noun, and not both."""
    rng = source.rng
    if (like is None or not like.verb) and rng.random() < 0.25:
        return _getter(source, like)
    verb = rng.choice(VERBS) if rng.random() < 0.5 else word(source)
    if verb.endswith(("ing", "s", "ed")):  # as no verb does after "please"
        verb = rng.choice(VERBS)
    noun = rng.choice(NOUNS) if rng.random() < 0.5 else word(source)
    while noun == verb:
        noun = rng.choice(NOUNS)
    if rng.random() < 0.15:
        noun = f"{rng.choice(('red', 'old', 'big', 'new', 'main', 'left'))} {noun}"
    if like is not None and like.verb:
        verb, noun = (like.verb, noun) if rng.random() < 0.5 else (verb, like.noun)
    count = rng.choice((0, 1, 1, 1, 2, 2, 3))
    kinds = dict(rng.sample(tuple(_COPYABLE.items()), count))
    if rng.random() < 0.3 and kinds:
        kinds = {word(source): kind for kind in kinds.values()}
    required = tuple(key for key in kinds if rng.random() < 0.85)
    name = f"{verb}_{noun}".replace(" ", "_")
    said = rng.choice((f"{third_person(verb)} the {noun}", f"{verb} the {noun}"))
    return _made(rng, name, said, MadeUp({}, verb, noun, kinds, {}, required))  # type: ignore


def _getter(source: Source, like: MadeUp | None) -> MadeUp:
    rng = source.rng
    noun = rng.choice(QUALITIES) if rng.random() < 0.5 else word(source)
    while like is not None and noun == like.noun:
        noun = word(source)
    kind, key = rng.choice((("town", "city"), ("person", "person"), ("word", "item"),
                            ("code", "id"), ("land", "country"), ("title", "title")))  # fmt: skip
    key = word(source) if rng.random() < 0.25 else key
    start = rng.choice(("get", "get", "get", "find", "lookup", "fetch", "read", "tell"))
    name = rng.choice((f"{start}_{noun}", f"{start}_{noun}", f"{noun}_of", noun))
    said = rng.choice((f"Gets the {noun}", f"The {noun} of something", f"Get the {noun} of it"))
    return _made(rng, name, said, MadeUp({}, "", noun, {key: kind}, {}, (key,)))  # type: ignore


def _made(rng: Random, name: str, said: str, plan: MadeUp) -> MadeUp:
    names = {key: key for key in plan.kinds}
    style = rng.random()
    if style < 0.2:
        name, names = camel(name), {key: camel(key) for key in names}
    elif style < 0.25:
        name = name.replace("_", ".", 1)
    properties: dict[str, Any] = {}
    for key, kind in plan.kinds.items():
        number = kind in ("int", "small", "percent")
        schema: dict[str, Any] = {"type": "integer" if number else "string"}
        if rng.random() < 0.5:
            schema["description"] = f"The {key.replace('_', ' ')}"
        properties[names[key]] = schema
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if plan.required:
        parameters["required"] = [names[key] for key in plan.required]
    description = "" if rng.random() < 0.1 else said[0].upper() + said[1:]
    definition = tool(name, description, parameters)
    return MadeUp(definition, plan.verb, plan.noun, plan.kinds, names, plan.required)
