"""Statements with any verb, thing and place, and questions that share words with one of them.

A fact of `relations` is asked for in words that belong to its relation. Here verbs, things and
names come together at random: only a statement's own words say which question it answers.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

from examples.tiny_data.claims import Claim, Text, closed, lowered, sections, unused
from examples.tiny_data.fillers import COLORS, items
from examples.tiny_data.prose import ASIDES
from examples.tiny_data.relations import parted
from examples.tiny_data.story_parts import kinds, plurals, with_article
from examples.tiny_data.turns import Exhausted, Source, capital

TABLES = sections("statements.txt")
LISTS = {name: items(lines[0]) for name, lines in TABLES.items() if len(lines) == 1}
# Slots of a verb's forms, and the section that has such verbs.
VERBS = {
    ("do", "does", "did"): "things are done to",
    ("stay", "stays", "stayed"): "done somewhere",
    ("give", "gives", "gave"): "given to",
    ("get", "gets", "got"): "got from",
    ("make", "makes", "made"): "made for",
    ("open", "opens", "opened"): "what things do",
}
_VERB_SLOTS = {slot for slots in VERBS for slot in slots}
CATEGORIES = {
    "animal": "ANIMALS",
    "fruit": "FRUITS",
    "snack": "SNACKS",
    "toy": "TOYS",
    "vehicle": "VEHICLES",
    "plant": "plants",
    "place": "places",
}
THINGS = tuple(
    noun.partition("/")[0]
    for kind in ("ANIMALS", "FRUITS", "SNACKS", "CLOTHES", "TOYS", "VEHICLES", "SMALL", "others")
    for noun in kinds()[kind]
    if noun not in ("stairs", "scissors")
)
PLACES = tuple(noun.partition("/")[0] for noun in kinds()["places"] if noun != "woods")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "last")
EVENTS = tuple(
    "race|contest|game|meeting|party|concert|trip|lesson|exam|match|dance|show|fair|picnic|talk|"
    "wedding|class|lunch|parade|play|walk|training|sale|visit|interview|rehearsal".split("|")
)


@dataclass(frozen=True)
class Frame:
    """A statement with slots, questions for each of them, and for its subject.

    What is asked of one frame of a `group` may be answered by another one.
    """

    says: str
    asks: Mapping[str, tuple[str, ...]]
    who: tuple[str, ...]
    group: str


def _frames() -> tuple[Frame, ...]:
    frames = list[Frame]()
    for line in TABLES["frames"]:
        if line.startswith("> "):
            says, _, group = line[2:].partition(" #")
            frames.append(Frame(says, {}, (), group))
        elif line.startswith("who "):
            frames[-1] = replace(frames[-1], who=parted(line[4:]))
        else:
            slot, _, forms = line.partition("? ")
            frames[-1] = replace(frames[-1], asks={**frames[-1].asks, slot: parted(forms)})
    return tuple(frames)


FRAMES = _frames()


@dataclass(frozen=True)
class Statement:
    """A frame with its words: what it claims, a claim for each slot that can be asked for."""

    frame: Frame
    words: Mapping[str, str]
    claims: tuple[Claim, ...]

    @property
    def clause(self) -> str:
        return self.claims[0].clause

    @property
    def verbs(self) -> dict[str, str]:
        return {slot: word for slot, word in self.words.items() if slot in _VERB_SLOTS}


def some(source: Source, most: int = 6) -> Text:
    """Two to `most` statements, many of them alike, and what they leave open."""
    while True:
        try:
            text = _text(source, most)
        except Exhausted:
            continue
        if text.claims:
            return text


def _text(source: Source, most: int) -> Text:
    statements = _scene(source, most)
    told = Counter(
        question for each in statements for claim in each.claims for question in _questions(claim)
    )
    claims = [
        replace(
            claim,
            asks=tuple(form for form in claim.asks if told[_asked(form, claim.subject)] == 1),
            who=tuple(form for form in claim.who if told[form] == 1),
        )
        for each in statements
        for claim in each.claims
    ]
    claims = [claim for claim in claims if claim.asks]
    passages = _passages(source, [each.clause for each in statements])
    return Text(passages, claims, _missing(source, statements, set(told), "\n".join(passages)))


def _scene(source: Source, most: int) -> list[Statement]:
    rng = source.rng
    frames = rng.sample(FRAMES, rng.choice((1, 1, 1, 2, 2, 3)))
    shared: dict[str, str] = {}
    for slots, table in VERBS.items():
        if rng.random() < 0.5:
            shared |= zip(slots, rng.choice(TABLES[table]).split(), strict=True)
    if rng.random() < 0.3:
        shared["noun"] = rng.choice(THINGS)
    names, statements = ".", list[Statement]()
    for _ in range(rng.choice([n for n in (2, 2, 3, 3, 3, 4, 4, 5, 6) if n <= most])):
        one = statement(source, rng.choice(frames), shared, names)
        statements.append(one)
        names += f" {one.clause}"
    return statements


def statement(
    source: Source, frame: Frame, shared: Mapping[str, str], names: str, subject: str = ""
) -> Statement:
    """A frame with words none of which occurs in `names`, but for those that are shared."""
    rng, words = source.rng, dict[str, str]()
    for slots, table in VERBS.items():
        words |= zip(slots, rng.choice(TABLES[table]).split(), strict=True)
    words |= {slot: form for slot, form in shared.items() if slot != "noun"}
    thing = a_thing(source, shared.get("noun", ""), names)
    noun_alone = "noun" not in shared and rng.random() < 0.4
    short = thing.split()[-1] if noun_alone else thing
    words["the thing"] = f"the {short}"
    words["a thing"] = rng.choice((f"the {thing}", f"the {thing}", with_article(thing)))
    words["thing"] = with_article(thing) if "there is" in frame.says else f"the {thing}"
    forms = (frame.says, *frame.who, *chain.from_iterable(frame.asks.values()))
    used = set(re.findall(r"\{([a-z ]+)\}", " ".join(forms)))
    for slot in sorted(used - words.keys() - {"s", "category"}):
        words[slot] = filler(source, slot, names + " " + " ".join(words.values()))
    if "member" in used:
        words["category"], words["member"] = _of_category(source, names)
    is_person = "{s}" in frame.says
    if not subject and is_person:
        subject = someone(source, names)
    elif not subject:
        subject = (
            words["the thing"]
            if "{thing}" in frame.says
            else words.get("member", words.get("event", ""))
        )
    else:
        words["thing"] = subject
    says = frame.says
    tail = re.search(r" \{(place|time)\}\.$", says)
    if tail and is_person and rng.random() < 0.2:
        says = "{" + tail[1] + "} " + says[: tail.start()] + "."
    clause = closed(capital(_filled(says, words).replace("{s}", subject)))
    who = tuple(dict.fromkeys(capital(_filled(form, words)) for form in frame.who))
    claims = list[Claim]()
    for slot, questions in frame.asks.items():
        asks = tuple(capital(_filled(form, words)) for form in questions)
        claims.append(Claim(subject, words[slot], clause, asks, () if claims else who, is_person))
    kept = {slot: words[slot] for slot in used & words.keys() - {"the thing", "category"}}
    return Statement(frame, {**kept, "s": subject}, tuple(claims))


def _filled(form: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z ]+)\}", lambda match: words.get(match[1], match[0]), form)


def _asked(form: str, subject: str) -> str:
    return capital(form.replace("{s}", subject))


def _questions(claim: Claim) -> set[str]:
    return {*claim.who, *(_asked(form, claim.subject) for form in claim.asks)}


def a_thing(source: Source, noun: str, names: str) -> str:
    """A noun, mostly with an adjective; with one for certain where others have the same noun."""
    rng = source.rng
    for _ in range(50):
        adjective = rng.choice(COLORS if rng.random() < 0.3 else LISTS["adjectives"])
        if rng.random() < 0.15:
            adjective = rng.choice(source.words)
        thing = noun or rng.choice(THINGS)
        if noun or rng.random() < 0.55:
            if adjective not in names:
                return f"{adjective} {thing}"
        elif thing not in names:
            return thing
    raise Exhausted(f"no thing is left that is none of: {names}")


def someone(source: Source, names: str) -> str:
    """A person or an animal that does not occur in `names`."""
    rng = source.rng
    for _ in range(50):
        kind = rng.random()
        if kind < 0.8:
            name = source.pick("person")
        elif kind < 0.9:
            name = f"the {rng.choice(LISTS['roles'])}"
        else:
            name = f"the {rng.choice(kinds()['ANIMALS']).partition('/')[0]}"
        if name not in names:
            return name
    raise Exhausted(f"nobody is left who is none of: {names}")


def _place(source: Source) -> str:
    rng = source.rng
    kind = rng.random()
    if kind < 0.45:
        return f"{rng.choice(('in', 'in', 'near', 'behind', 'at'))} the {rng.choice(PLACES)}"
    if kind < 0.75:
        where = ("under", "behind", "on", "next to", "in", "beside", "on top of", "inside", "by")
        return f"{rng.choice(where)} the {rng.choice(THINGS)}"
    if kind < 0.88:
        return f"in {source.pick('town')}"
    if kind < 0.95:
        return f"in room {rng.randint(1, 99)}"
    return f"on the {rng.choice(ORDINALS[:5])} floor"


def _time(source: Source) -> str:
    rng = source.rng
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(LISTS["times"])
    if kind < 0.5:
        return f"on {source.pick('day')}"
    if kind < 0.7:
        return f"at {source.pick('time')}"
    if kind < 0.85:
        return f"on {source.pick('date')}"
    return f"in {rng.randint(1700, 2040)}"


def filler(source: Source, slot: str, names: str) -> str:
    """A value for a slot that does not occur in `names`."""
    rng = source.rng
    for _ in range(50):
        match slot:
            case "place":
                value = _place(source)
            case "time":
                value = _time(source)
            case "person":
                value = someone(source, names)
            case "other thing":
                value = f"the {a_thing(source, '', names)}"
            case "number":
                value = str(rng.choice((rng.randint(2, 12), rng.randint(13, 99))))
            case "things":
                value = plurals()[rng.choice(THINGS)]
            case "town":
                value = source.pick("town")
            case "price":
                value = f"{rng.randint(2, 99)} {rng.choice(('dollars', 'euros', 'cents'))}"
            case "name":
                value = source.pick(rng.choice(("pet", "person", "town"))).split()[-1]
            case "job":
                value = source.pick("job")
            case "ordinal":
                value = rng.choice(ORDINALS)
            case "event":
                value = rng.choice(EVENTS)
            case "quality":
                value = rng.choice(LISTS["of things"])
            case "state":
                value = rng.choice(LISTS["states"])
            case "most":
                value = rng.choice(LISTS["most"])
            case "role":
                value = rng.choice(LISTS["roles"])
            case "activity":
                value = rng.choice(LISTS["liked to do"])
            case _:
                return ""
        if not re.search(rf"\b{re.escape(value)}\b", names):
            return value
    raise Exhausted(f"no {slot} is left that is none of: {names}")


def _of_category(source: Source, names: str) -> tuple[str, str]:
    rng = source.rng
    category = rng.choice(list(CATEGORIES))
    nouns = [noun.partition("/")[0] for noun in kinds()[CATEGORIES[category]]]
    fresh = [noun for noun in nouns if noun not in names]
    if not fresh:
        raise Exhausted(f"no {category} is left that is none of: {names}")
    return category, rng.choice(fresh)


def _passages(source: Source, clauses: list[str]) -> list[str]:
    """The statements in their order, some of them in one sentence, with asides now and then."""
    rng, sentences, i = source.rng, list[str](), 0
    while i < len(clauses):
        size = min(rng.choice((1, 1, 1, 1, 2, 2, 3)), len(clauses) - i)
        parts = [clause.removesuffix(".") for clause in clauses[i : i + size]]
        parts[1:] = [_inside(part) for part in parts[1:]]
        joint = rng.choice((", and ", ", and ", " and ", ", but ", "; ", ", ", " while "))
        if size == 3:
            joint = rng.choice((", and ", " and ", ", "))
            sentences.append(closed(f"{parts[0]}, {parts[1]}{joint}{parts[2]}."))
        else:
            sentences.append(closed(joint.join(parts) + "."))
        i += size
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 2, 3))):
            sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(ASIDES))
    size = rng.choice((1, len(sentences), len(sentences), len(sentences)))
    return [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]


def _inside(clause: str) -> str:
    """The clause after a comma: names keep their capital."""
    first = clause.split()[0]
    is_name = first not in ("The", "A", "An", "In", "On", "At", "By") and not re.match(
        r"(Under|Behind|Next|Beside|Inside|Near|Outside|This|Last|Before|After|Every|Once|Twice|"
        r"Today|Yesterday)\b",
        clause,
    )
    return clause if is_name else lowered(clause)


def _missing(
    source: Source, statements: list[Statement], told: set[str], said: str
) -> list[tuple[str, str]]:
    """Questions like those with an answer that nothing said answers."""
    rng, missing = source.rng, list[tuple[str, str]]()
    for _ in range(6):
        one, other = rng.choice(statements), rng.choice(statements)
        claim = rng.choice(one.claims)
        apart = one.frame is other.frame or not one.frame.group
        apart = apart or one.frame.group != other.frame.group
        if rng.random() < 0.55 and apart and claim.person == other.claims[0].person:
            form, subject = rng.choice(claim.asks), other.claims[0].subject
            same_verb = bool(one.verbs.items() & other.verbs.items())
            bare = not any(
                value in form for slot, value in one.words.items() if slot not in _VERB_SLOTS
            )
            if one is not other and not (same_verb and bare) and _asked(form, subject) not in told:
                missing.append((form, subject))
            continue
        new = statement(source, one.frame, one.verbs, said)
        if rng.random() < 0.5:
            form = rng.choice(rng.choice(new.claims).asks)
            subject = new.claims[0].subject
        else:
            form, subject = rng.choice(new.claims[0].who), ""
        if _asked(form, subject) not in told:
            missing.append((form, subject))
    if not missing and (name := unused(source, "person", said)):
        claim = statements[0].claims[0]
        if claim.person:
            missing.append((rng.choice(claim.asks), name))
    return missing
