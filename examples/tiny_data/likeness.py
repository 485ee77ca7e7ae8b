"""What is nearly the same: relations, and names."""

import functools

from examples.tiny_data.fillers import BOYS, GIRLS
from examples.tiny_data.relations import Relation
from examples.tiny_data.turns import Source

PLACES = frozenset("building country hotel island room seat spot street town".split())
TIMES = frozenset("date day month time year".split())
# Relations one of which nearly says the other: who has moved to a town lives there.
NEARLY = (
    ("lives in", "lives on", "moved to", "comes from", "emigrated", "address is"),
    ("born in", "comes from", "grew up"),
    ("emigrated", "citizen"),
    ("in love with", "married", "{s}'s {k} is {v}"),
    ("{s} works", "{s}'s {k} is {v}", "teaches at", "opened a shop", "joined the firm"),
    ("{s} has {v} {k}", "{s} bought", "{s} lost", "{s} found", "{s} stole", "{s} got", "{s} left"),
    ("{s} sells", "{s} sold", "has sold"),
    ("{s} plays {v}", "learning to play", "plays for", "wears the number"),
    ("speaks", "is learning {v}", "teaches"),
    ("hobby is", "good at", "plays {v}", "goes swimming", "likes to read"),
    ("likes to eat", "for {k}"),
    ("likes to drink", "{s} ordered"),
    ("belongs to", "present for", "owner of", "run by", "owned by", "lent to", "is driven by"),
    ("staying in", "room at", "waiting in", "is sitting", "sleeps in", "sits", "has a summer"),
    ("is afraid of",),
    ("is wearing", "{s} wears", "is carrying"),
    ("is called {v}", "{s} keeps"),
    ("{s} wrote", "writes home"),
    ("{s} saw",),
    ("{s} met",),
    ("{s} called",),
    ("studied in", "degree in", "{s} goes to {v}", "finished school", "favorite subject"),
    ("fan of", "plays for", "member of"),
    ("dreamed about", "dreams of"),
    ("{s} has {v}.", "hurt the", "been ill", "fever"),
    ("{s} is {v}.", "kind of person", "used to be", "wants to become"),
    ("drives {v}", "was driving", "license plate"),
    ("died in",),
    ("is going to", "spent the holidays", "went to {v}", "is coming on", "goes on holiday"),
    ("It is {v} in", "It will be"),
    ("found by", "discovered", "invented", "made by", "designed by"),
    ("costs {v}", "sold for", "{v} to join", "comes to {v}"),
    ("taught by", "led by", "head of", "coached by"),
    ("is {v} late", "canceled", "delayed"),
    ("{s} takes", "{s} lasts"),
)


@functools.cache
def nearly(one: Relation, two: Relation) -> bool:
    """Whether they say nearly the same."""
    if one.subject == two.subject and one.topic and one.topic == two.topic:
        return True
    a, b = one.says[0], two.says[0]
    asks = [*one.asks, *two.asks]
    if {one.kind, two.kind} <= TIMES and any(form.startswith("When is {s}") for form in asks):
        return True
    if {one.kind, two.kind} <= PLACES and "person" != one.subject == two.subject:
        return True
    return any(any(k in a for k in group) and any(k in b for k in group) for group in NEARLY)


def near_name(source: Source, kind: str, name: str, said: str) -> str | None:
    """A name that is nearly another one, and is not in the text."""
    rng = source.rng
    if kind not in ("person", "pet", "town") or rng.random() < 0.5:
        return None
    alike = [each for each in GIRLS + BOYS if each[:2] == name[:2] and each not in said]
    if " " in name:
        return twin(source, name, said)
    if alike and kind == "person":
        near = rng.choice(alike)
    else:
        near = name[: max(2, len(name) - 2)] + rng.choice(
            "ander mina lor rick tona sey bel".split()
        )
    return near if near.lower() not in said.lower() else None


def twin(source: Source, name: str, said: str) -> str | None:
    """Another of the family, one with the same first name, or a last name with another vowel."""
    rng = source.rng
    first, last = name.rsplit(" ", 1)
    other = source.fresh("person", said)
    near = rng.choice((f"{first} {other.split()[-1]}", f"{other.split()[0]} {last}"))
    spots = [i for i, letter in enumerate(last) if i and letter in "aeiou"]
    if spots and rng.random() < 0.4:
        spot = rng.choice(spots)
        vowel = rng.choice([each for each in "aeiou" if each != last[spot]])
        near = f"{first} {last[:spot]}{vowel}{last[spot + 1 :]}"
    return near if near.lower() not in said.lower() else None
