"""Stories that begin with what is asked for: who the hero is, what it has or does, and where."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from examples.tiny_data.story_parts import (
    Parts,
    exchanged,
    kind_of,
    kinds,
    other_noun,
    plurals,
    with_article,
)
from examples.tiny_data.story_rests import NOBODY, Rest, rest_of
from examples.tiny_data.turns import Source, capital
from examples.tiny_data.wording import choose, groups

PRONOUNS = {"he": ("his", "him"), "she": ("her", "her"), "it": ("its", "it")}
SHE = "princess queen witch mermaid fairy nurse teacher dancer singer baker farmer pilot".split()
HE = """prince king knight wizard pirate farmer sailor cook baker chef clown cowboy painter giant
elf captain builder fisherman doctor""".split()
CREATURES = "robot dragon monster ghost dinosaur alien".split()
ADJECTIVES = """little brave kind clever young happy shy tiny friendly lonely funny quiet curious
lazy strong""".split()
RELATIVES = (
    "brother sister uncle aunt grandmother grandfather cousin neighbor friend father".split()
)
AT = {"beach": "at the", "farm": "on a", "island": "on an", "hill": "on a", "mountain": "on a"}
AT |= {"sea": "by the", "lake": "by a", "pond": "by a", "pool": "by a", "river": "by a"}
AT |= {"school": "near a", "zoo": "in a", "woods": "in the", "ocean": "by the", "bridge": "under a"}
AT |= {"street": "in a", "market": "near a", "station": "near a", "airport": "near an"}
AT |= {"waterfall": "near a", "park": "near a", "volcano": "near a", "playground": "near a"}
_NO_HOMES = frozenset("stage backyard bathroom office ship-yard store yard stable field".split())
_SAME = re.compile(r"\b(another|other|a|an|two)( little| big)? (girl|boy)s?\b")
_CHILD = re.compile(r"\b(mom|mommy|mum|dad|daddy|school|toys?|parents|kids?|child)\b", re.I)
_KEPT, _UNSEEN, _FREE = range(3)
NameOf = Callable[[Source, str, Parts, set[str], str], str]  # another name for an old one


@dataclass(frozen=True)
class Hero:
    """Who a story is about, `name` is nothing or as in "Otto"."""

    name: str
    noun: str  # "fox", "brave fox"
    he: str

    @property
    def the(self) -> str:
        return self.name or f"the {self.noun.split()[-1]}"

    @property
    def kind(self) -> str:
        return with_article(self.noun)


@dataclass(frozen=True)
class Action:
    """What a hero does, in the four forms of its verb, with an object that `after` follows."""

    does: str
    do: str
    doing: str
    did: str
    objects: tuple[str, ...]
    after: str

    def said(self, form: str, hero: Hero, thing: str) -> str:
        his = PRONOUNS[hero.he][0]
        return f"{form} {thing}{self.after}".replace("{his}", his)


@dataclass(frozen=True)
class Tale:
    """A story made for a request, and what the request may say of it."""

    text: str
    start: str  # its own first sentences
    hero: Hero
    things: tuple[str, ...]  # with their articles
    place: str  # "in a forest", or nothing
    actions: tuple[tuple[Action, str], ...]  # with their objects
    relative: str  # whose action it is: "uncle", or nothing for the hero's own
    friend: str


@cache
def _actions() -> tuple[tuple[Action, ...], ...]:
    """Those by which the hero has a thing, by which it has none yet, and all others."""
    return tuple(tuple(map(_action, group)) for group in groups("story_actions.txt"))


def _action(line: str) -> Action:
    verbs, _, objects = line.partition(": ")
    listed, _, after = objects.partition(" | ")
    does, do, doing, did = (verb.replace("_", " ") for verb in verbs.split())
    return Action(does, do, doing, did, tuple(listed.split(", ")), " " * bool(after) + after)


@cache
def _openings() -> list[list[str]]:
    return groups("story_openings.txt")


def tale(source: Source, name_of: NameOf) -> Tale | None:
    """A story with an opening of its own; None where the stories hardly give any."""
    rng = source.rng
    for _ in range(60):
        rest = rest_of(rng.choice(source.stories))
        if rest is not None and (rest.thing or rng.random() < 0.4):
            made = _made(source, rest, name_of)
            if made is not None:
                return made
    return None


def _made(source: Source, rest: Rest, name_of: NameOf) -> Tale | None:
    rng, parts, words = source.rng, rest.parts, dict[str, str]()
    hero = _hero(source, rest, name_of)
    text = rest.text
    old_kind = parts.kind or ("girl" if parts.girl else "boy")
    new_kind = hero.noun.split()[-1]
    if old_kind != new_kind:
        words |= {old_kind: new_kind, old_kind.title(): new_kind.title()}
        many = {plurals()[old_kind]: plurals().get(new_kind, f"{new_kind}s")}
        words |= many if kind_of().get(old_kind, "").isupper() else {}
    thing = rest.thing
    if thing and rng.random() < 0.9:
        changes = other_noun(rng, text, thing)
        if new_kind not in changes.values():
            words |= changes
            thing = changes.get(thing, thing)
    if thing == new_kind:
        return None
    friend = ""
    for name in parts.names[1:]:
        if rng.random() < 0.5:
            taken = {hero.name, *parts.names, *words.values()}
            words[name] = _one_name(name_of, source, name, parts, taken, text)
        if not friend and text.count(name) > 1 and f"named {name}" not in text:
            friend = words.get(name, name)
    if hero.name:
        words[parts.hero] = hero.name
        text = exchanged(text, words)
    else:
        text = _unnamed(exchanged(text, words), parts.hero, hero)
    if re.search(rf"\b{parts.hero}", text) and not hero.name.startswith(parts.hero):
        return None
    if friend and rng.random() < 0.85:
        friend = ""
    return _opened(rng, rest, hero, thing, friend, text)


def _hero(source: Source, rest: Rest, name_of: NameOf) -> Hero:
    """Someone whom the rest of a story fits."""
    rng, parts = source.rng, rest.parts
    old = parts.kind or ("girl" if parts.girl else "boy")
    is_child, share = bool(_CHILD.search(rest.text)), 0.12
    if kind_of().get(old, "").isupper():
        kind, share = old, 0.8 if parts.hero == NOBODY else 0.35
        if rng.random() < 0.75 and (other := other_noun(rng, rest.text, old)):
            is_animal = kind_of()[old] == "ANIMALS"
            kind = rng.choice(CREATURES) if is_animal and rng.random() < 0.25 else other[old]
    elif _SAME.search(rest.text):
        kind = old
    elif rng.random() < (0.8 if is_child else 0.35):
        kind = old if rng.random() < 0.9 else "child"
    elif is_child:
        kind = "princess" if rest.he == "she" else "prince"
    else:
        kind, share = rng.choice(SHE if rest.he == "she" else HE), 0.3
    noun = f"{rng.choice(ADJECTIVES)} {kind}" if rng.random() < 0.35 else kind
    has_name = rng.random() > share or kind in ("girl", "boy", "child") or kind in rest.text
    taken = {*parts.names, kind.title()}
    name = ""
    if has_name:
        name = _one_name(name_of, source, parts.hero, parts, taken, rest.text)
    return Hero(name, noun, rest.he)


def _one_name(
    name_of: NameOf, source: Source, old: str, parts: Parts, taken: set[str], text: str
) -> str:
    """A name of one word that fits the old one."""
    while True:
        name = name_of(source, old, parts, taken, text)
        if re.fullmatch("[A-Z][a-z]+", name):
            return name


def _unnamed(text: str, name: str, hero: Hero) -> str:
    """The text with "the fox" for the hero's name, and "Fox" where someone speaks."""
    quoted = text.split('"')
    kind = hero.noun.split()[-1]
    for at, part in enumerate(quoted):
        if at % 2:
            quoted[at] = re.sub(rf"\b{name}\b", kind.title(), part)
        else:
            part = (
                re.sub(rf"((?:^|[.!?])\s*){name}\b", rf"\1The {kind}", part)
                if at == 0
                else (re.sub(rf"([.!?]\s+){name}\b", rf"\1The {kind}", part))
            )
            if at and re.search(r"[.!?]$", quoted[at - 1]):
                part = re.sub(rf"^(\s+){name}\b(?! (said|asked|replied))", rf"\1The {kind}", part)
            quoted[at] = re.sub(rf"\b{name}\b", f"the {kind}", part)
    return re.sub(r"(^|\n)the ", r"\1The ", '"'.join(quoted))


def _noun(rng: random.Random, kind: str, unlike: str) -> str:
    nouns = [noun.partition("/")[0] for noun in kinds()[kind]]
    while True:
        noun = rng.choice(nouns)
        if noun not in unlike and noun not in ("fly", "top", "saw", "teddy", "compass"):
            return noun


def _opened(
    rng: random.Random, rest: Rest, hero: Hero, thing: str, friend: str, text: str
) -> Tale | None:
    """The text after sentences that say who does what where."""
    known = text + hero.noun
    place, relative = "", ""
    if rng.random() < 0.3:
        noun = _noun(rng, "places", text + " ".join(_NO_HOMES))
        if "-" not in noun:
            place = f"{AT[noun]} {noun}" if noun in AT else f"in {with_article(noun)}"
    actions = list[tuple[Action, str]]()
    things = list[str]()
    number = rng.choice((1, 1, 1, 1, 2, 2, 3) if thing else (0, 0, 1, 1, 1, 2, 2, 3))
    if place == "" and not friend and not number:
        number = 1
    if thing:
        kind = kind_of()[thing]
        fit = [one for one in _actions()[_UNSEEN if rest.is_new else _KEPT] if kind in one.objects]
        if not fit:
            return None
        if rng.random() < 0.25:
            fit = fit[:1]
        things.append(with_article(thing))
        actions.append((rng.choice(fit), things[0]))
    if number > len(actions):
        group = rng.choice((_KEPT, _UNSEEN, _FREE, _FREE, _FREE))
        one = rng.choice(_actions()[group])
        wanted = rng.choice(one.objects).replace("{his}", PRONOUNS[hero.he][0])
        if wanted.isupper():
            wanted = with_article(_noun(rng, wanted, known + " ".join(things)))
        actions.append((one, wanted))
        things.append(wanted)
    if number == 1 and not thing and rng.random() < 0.15 and hero.name:
        relative = rng.choice(RELATIVES)
    # Loose things: one verb for two or three of them.
    elif number > 1 and rng.random() < 0.5:
        first = thing or _noun(rng, rng.choice(("TOYS", "SMALL", "ANIMALS")), known)
        group = _UNSEEN if rest.is_new and thing else _KEPT
        fit = [a for a in _actions()[group] if kind_of()[first] in a.objects]
        one = rng.choice(fit[:4])
        listed = [first]
        while len(listed) < number:
            kind = rng.choice([o for o in one.objects if o.isupper()])
            listed.append(_noun(rng, kind, known + " ".join(listed)))
        things = [with_article(noun) for noun in listed]
        rng.shuffle(things)
        actions = [(one, joined(things))]
    rng.shuffle(actions)
    start = _start(rng, hero, place, actions, relative, friend, text.startswith("One "))
    text = re.sub(r"\s*\n\s*", "\n", f"{start} {text}")
    if rng.random() < 0.5 and len(re.findall(rf"\b{hero.the}\b", text)) > 2 and not relative:
        text += " " + _end(rng, hero, things[0] if things else "")
    if len(re.findall(rf"\b{hero.the}\b", text, re.I)) < 3:
        return None
    return Tale(text, start, hero, tuple(things), place, tuple(actions), relative, friend)


def joined(things: Sequence[str]) -> str:
    """ "a kite", "a kite and a drum", "a kite, a drum and a frog"."""
    return " and ".join(filter(None, (", ".join(things[:-1]), things[-1])))


def _start(
    rng: random.Random,
    hero: Hero,
    place: str,
    actions: Sequence[tuple[Action, str]],
    relative: str,
    friend: str,
    is_day_next: bool,
) -> str:
    """The first sentences; without "One day," where the next one begins with it."""
    did = [action.said(action.did, hero, thing) for action, thing in actions]
    his = PRONOUNS[hero.he][0]
    if relative:
        did = [f"had {'an' if relative[0] in 'aeiou' else 'a'} {relative} who {did[0]}"]
    if friend:
        did.append(f"{rng.choice(('had a friend called', 'was friends with', 'knew'))} {friend}")
    group = (1 if place else 0) if did else (2 if place else 3)
    while True:
        template = choose(rng, rng.choice(_openings()[group]))
        has_no_name = not hero.name and re.search(r"\{Name\}(?!, \{kind\})", template)
        if not has_no_name and not (is_day_next and "One " in template):
            break
    words = ("named", "called", "named", "whose name was")
    named = f" {rng.choice(words[: 3 if '{a} {in}' in template else 4])} {hero.name}"
    a = hero.kind + (named if hero.name else "")
    name = hero.name or capital(hero.the)
    if not hero.name:
        template = template.replace("{Name}, {kind},", "{A}")
    elif "{" in template and re.match(r"\{A\} ", template) and rng.random() < 0.3:
        a = f"{hero.name} the {hero.noun.split()[-1]}"
    fields = {"a": a, "A": capital(a), "Name": name, "the": hero.the, "The": capital(hero.the)}
    fields |= {"kind": hero.kind, "he": hero.he, "He": capital(hero.he), "his": his}
    fields |= {"in": place, "In": capital(place), "did": " and ".join(did)}
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], template)


def _end(rng: random.Random, hero: Hero, thing: str) -> str:
    """A last sentence, with the thing if it can be called "the ..."."""
    match = re.match(r"(?:an?|the) ([a-z]+)$", thing)
    the_thing = f"the {match[1]}" if match else ""
    template = choose(rng, rng.choice(_openings()[4 if the_thing else 5]))
    fields = {"the": hero.the, "The": capital(hero.the), "thing": the_thing, "he": hero.he}
    fields["his"] = PRONOUNS[hero.he][0]
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], template).rstrip(".") + "."
