"""What users say of themselves, their family and their things in any words, and ask later."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from examples.tiny_data import facts, statements
from examples.tiny_data.claims import Claim, asked, closed
from examples.tiny_data.layouts import some_system, some_thanks
from examples.tiny_data.remembered import CHANGE_REPLIES, CHANGES, GENERAL_REPLIES
from examples.tiny_data.statements import FRAMES, LISTS
from examples.tiny_data.turns import Exhausted, Source, Turn, capital, dialog_of, forms
from llama import Message

# A user can correct these with the new value alone.
MENDED = ("place", "time", "number", "town", "price", "name", "person")
SHORT_CHANGES = forms("""
    No, {}!
    No, {}.
    Sorry, {}.
    I mean {}.
    Sorry, I mean {}.
    Wait, {}.
    Correction: {}.
    Not that. {}.
    Oh, I meant {}.
    Make that {}.
    I was wrong, {} is right.
""")
REPLIES = (
    *GENERAL_REPLIES,
    *forms("""
    Oh, really?
    That is nice.
    That is good.
    That sounds good.
    I am glad to hear that.
    I see!
    Thank you!
    Got it.
    Noted.
    All right.
    Very well.
    How nice!
    Interesting!
    Fine.
    Is there more?
    """),
)
# Of these, "I" and "we" can be the subject as well as names.
_PAST = re.compile(r"\{s\} (\{(did|stayed|gave|got|made)\}|can|has)(?!\w)")


@dataclass(frozen=True)
class Told:
    """What a user says, and what it claims for the assistant."""

    said: str
    claim: Claim
    slot: str


def dialog(source: Source, plain: Callable[[Source], Turn]) -> list[Message]:
    """One to four things that a user tells, other turns, and questions for what was told."""
    rng, names, told = source.rng, ".", list[Told]()
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        one = _told(source, names)
        told.append(one)
        names += f" {one.said} {one.claim.value}"
    parts = [each.said for each in told]
    if rng.random() < 0.3:
        parts = [" ".join(parts)]
    turns = [Turn(_typed(source, part), rng.choice(REPLIES), free=True) for part in parts]
    if told[-1].slot in MENDED and rng.random() < 0.3:
        turn, told[-1] = _mended(source, told[-1], names)
        turns.append(turn)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        between = some_thanks(source) if rng.random() < 0.5 else plain(source)
        turns.insert(rng.randint(1, len(turns)), between)
    for one in rng.sample(told, rng.randint(1, len(told))):
        turns.append(facts.question_about(source, one.claim, one.claim.who, 0.15))
    if rng.random() < 0.25:
        turns.insert(rng.randint(len(turns) - 1, len(turns)), _unsaid(source, told, names))
    return dialog_of(some_system(source), turns)


def _told(source: Source, names: str) -> Told:
    """Something about the user, the family, their things or somebody else."""
    rng = source.rng
    frame = rng.choice(FRAMES)
    if "{thing}" in frame.says:
        thing = statements.a_thing(source, "", names)
        mine, yours = f"my {thing}", f"your {thing}"
    elif _PAST.match(frame.says) and rng.random() < 0.6:
        mine, yours = rng.choice((("I", "you"), ("I", "you"), ("we", "you")))
    elif "{s}" in frame.says and rng.random() < 0.7:
        mine = _kin(source, names)
        yours = mine.replace("my ", "your ")
    else:
        mine = yours = ""
    made = statements.statement(source, frame, {}, names, yours)
    claim = rng.choice(made.claims)
    first = made.claims[0]
    said, answer = claim.clause, claim.clause
    if yours == "you":
        said = re.sub(r"\b[Yy]ou\b", mine, said).replace(f"{mine} has", f"{mine} have")
        answer = answer.replace("ou has", "ou have")
    elif yours:
        said = re.sub(rf"\b[Yy]{yours[1:]}\b", mine, said)
    asks = claim.asks
    if mine in ("I", "we"):
        asks = tuple(form for form in asks if not re.search(r"\{s\}'s|\{s\} has\b", form))
        asks = tuple(form.replace("does {s}", "do {s}") for form in asks)
        asks = tuple(re.sub(r"([Hh])as \{s\}", r"\1ave {s}", form) for form in asks)
    who = first.who if frame.says.startswith("{s}") else ()
    subject = mine or claim.subject
    found = Claim(subject, claim.value, capital(answer), asks, who, claim.person)
    slot = next(slot for slot in frame.asks if made.words[slot] == claim.value)
    return Told(capital(said), found, slot)


def _kin(source: Source, names: str) -> str:
    left = [one for one in LISTS["kin"] if one not in names.lower()]
    if not left:
        raise Exhausted("all of the family have been named")
    return source.rng.choice(left)


def _typed(source: Source, said: str) -> str:
    kind = source.rng.random()
    if kind < 0.1:
        return _after(said)
    if kind < 0.2:
        return said.rstrip(".")
    if kind < 0.3:
        opening = ("By the way, ", "You know, ", "Listen: ", "Remember this: ", "Today: ")
        return source.rng.choice(opening) + _after(said)
    return said


def _mended(source: Source, one: Told, names: str) -> tuple[Turn, Told]:
    """The user says that a value is another one."""
    rng, old = source.rng, one.claim.value
    new = statements.filler(source, one.slot, names)
    said, clause = (
        closed(text.replace(old, new).replace(capital(old), capital(new)))
        for text in (one.said, one.claim.clause)
    )
    if rng.random() < 0.5:
        text = closed(rng.choice(SHORT_CHANGES).replace("{}", new))
    else:
        form = rng.choice(CHANGES)
        text = form.replace("{}", _after(said) if form.endswith((", {}", ": {}")) else said)
    claim = replace(one.claim, value=new, clause=clause, who=())
    return Turn(capital(text), rng.choice(CHANGE_REPLIES), free=True), Told(said, claim, one.slot)


def _after(said: str) -> str:
    """What is said, after a comma."""
    return said[:1].lower() + said[1:] if re.match(r"(My|We|The|In|On|At) ", said) else said


def _unsaid(source: Source, told: list[Told], names: str) -> Turn:
    """A question for what the user has not told."""
    other = _told(source, names)
    told_forms = {form for one in told for form in one.claim.asks}
    if told_forms & set(other.claim.asks):
        return some_thanks(source)
    return Turn.unknown(asked(source, source.rng.choice(other.claim.asks), other.claim.subject))
