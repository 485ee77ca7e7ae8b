"""What users tell of themselves and of others, and ask for later."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from examples.tiny_data.turns import Source, Turn, capital, dialog_of, forms
from llama import Message

Plain = Callable[[Source], Turn]


@dataclass(frozen=True)
class Kind:
    """How something is told, {v}, and of what or whom, {k}; replies, questions for it, answer."""

    name: str
    filler: str
    choices: tuple[str, ...]
    tells: tuple[str, ...]
    replies: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str

    @property
    def of_persons(self) -> bool:
        """Whether {k} is a name."""
        return self.choices[0].startswith("@")


def _read(text: str) -> tuple[tuple[Kind, ...], dict[str, tuple[str, ...]]]:
    """The kinds, and the values of those that have a list of their own."""
    kinds, _, values = text.partition("\nvalues\n")
    found = []
    for block in kinds.split("\n\n")[1:]:
        head, *lines = block.strip().splitlines()
        match = re.fullmatch(r"\[(.+)\] ([a-z ]+)(?:; (.+))?", head)
        assert match, head
        told, replies, asks, (answer,) = (
            tuple(line[2:] for line in lines if line[0] == mark) for mark in "+-?="
        )
        choices = tuple((match[3] or "").split(", "))
        found.append(Kind(match[1], match[2], choices, told, replies, asks, answer))
    lists = (line.split(": ", 1) for line in values.strip().splitlines())
    return tuple(found), {name: tuple(items.split(", ")) for name, items in lists}


KINDS, VALUES = _read(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"))
BY_NAME = {kind.name: kind for kind in KINDS}
# Kinds that a question for one of them may mean the other of: only one is in a dialog.
ALIKE = tuple(
    frozenset(line.split(", "))
    for line in forms(
        """
        home, street, floor, holiday
        appointment, day
        hobby, sport, collection, instrument
        tomorrow, weekend, dinner, visit
        birthday, birth year, age
        language, learning
        job, workplace
        name, nickname
        book, reading
        found, place of thing
        """
    )
)
# What nearly everyone tells.
OFTEN = {"name": 10, "home": 5, "pet": 6, "age": 5, "relative": 5, "job": 3, "code": 3}
OFTEN |= {"food": 3, "color": 3, "relative home": 2, "password": 2, "friend home": 2}
WEIGHTS = tuple(OFTEN.get(kind.name, 1) for kind in KINDS)
NUMBERED: dict[str, Callable[[random.Random], str]] = {
    "height": lambda rng: rng.choice(
        (f"{rng.randint(90, 205)} centimeters", f"1.{rng.randint(10, 99)} meters")
    ),
    "weight": lambda rng: f"{rng.randint(20, 140)} {rng.choice(('kilos', 'kilos', 'pounds'))}",
    "few": lambda rng: str(rng.randint(2, 15)),
    "small number": lambda rng: str(rng.randint(2, 50)),
    "room number": lambda rng: str(rng.randint(1, 999)),
}
GENERAL_REPLIES = forms(
    """
    Okay.
    Okay, I will remember that.
    I will remember that.
    I will keep that in mind.
    Thank you for telling me.
    Thanks for telling me!
    Good to know.
    I see.
    All right, I will not forget it.
    """
)
CHANGES = forms(
    """
    Actually, {}
    No, wait: {}
    Correction: {}
    Sorry, I was wrong: {}
    I have to correct myself: {}
    What I said before is not right. {}
    That has changed: {}
    Things have changed. {}
    I told you something wrong. {}
    Oops, {}
    """
)
CHANGE_REPLIES = forms(
    """
    Okay, thank you for telling me.
    I see, I will remember that.
    Oh, I see.
    All right, I will keep that in mind.
    No problem, I will remember that.
    """
)
SUMMARIES = forms(
    """
    What do you know about me?
    What did I tell you?
    What did I tell you about me?
    Tell me all that you know about me.
    what do you know about me
    What do you remember?
    What do you remember about me?
    """
)
NOTES = forms(
    """
    The user said earlier: "{}"
    The user told you: "{}"
    What the user said before: "{}"
    You are a helpful assistant. The user said: "{}"
    From the last chat with the user: "{}"
    The user writes of himself: "{}"
    """
)
SYSTEMS = forms(
    """
    You are a helpful assistant.
    You are a friendly assistant.
    You remember what the user tells you.
    Remember what the user says.
    You are Llama, a tiny language model.
    Listen to the user and answer the questions.
    """
)
QUESTIONS: tuple[str, ...] = ("So, {}", "Tell me: {}", "One question: {}", "Hey, {}", "Now: {}")
QUESTIONS += ("Quick question: {}", "Let me test you. {}", "Hmm, {}", "By the way, {}", "Okay. {}")
AFTER = (" Please.", " Thanks!", " I forgot it.", " Do you still know it?", " I told you before.")


def _value(source: Source, filler: str) -> str:
    if filler == "word":
        return source.rng.choice(source.words)
    if filler in NUMBERED:
        return NUMBERED[filler](source.rng)
    if filler in VALUES:
        return source.rng.choice(VALUES[filler])
    value = source.pick(filler)
    return re.sub(r"^an? (?=(\w))", lambda a: "an " if a[1] in "aeiou" else "a ", value)


def _filled(text: str, parts: Mapping[str, str]) -> str:
    for key, value in parts.items():
        if value[:1] in tuple("aeiou"):
            text = text.replace(f" a {{{key}}}", f" an {{{key}}}")
        text = text.replace(f"{{{key}}}", value)
    return capital(text) if text[0] in "".join(parts.values()) else text


def _small(text: str) -> str:
    """The text as it goes on after a comma."""
    return text if re.match(r"I\b|\{", text) else text[0].lower() + text[1:]


@dataclass(frozen=True)
class Told:
    """Something of a kind, about {k}, that the user says, with its value."""

    kind: Kind
    of: str
    value: str

    @property
    def parts(self) -> dict[str, str]:
        return {"k": self.of, "v": self.value}

    @property
    def answer(self) -> str:
        return capital(_filled(self.kind.answer, self.parts))

    def question(self, source: Source) -> str:
        """One of the questions for it, at times with something before or after."""
        rng = source.rng
        text = rng.choice(self.kind.asks)
        chance = rng.random()
        if chance < 0.12:
            frame = rng.choice(QUESTIONS)
            text = frame.replace("{}", text if re.search(r"[.:] \{", frame) else _small(text))
        elif chance < 0.17:
            text = text if text[-1] in "?." else text + "?"
            text += rng.choice(AFTER[:2] if text.startswith(("Do", "Can", "Tell")) else AFTER)
        elif chance < 0.25:
            text = text.lower().rstrip("?.")
            text = re.sub(r"\bi\b", rng.choice("iI"), text)
        elif chance < 0.3:
            text = text.replace("you ", "u ").rstrip("?.")
        return _filled(text, {"k": self.of})

    def said(self, source: Source, frame: str = "{}") -> str:
        """One of the ways to tell it, at times sloppily typed."""
        rng = source.rng
        text = rng.choice(self.kind.tells)
        if frame != "{}":
            text = rng.choice([tell for tell in self.kind.tells if PLAIN.match(tell)] or [text])
            text = frame.replace("{}", text if ". {" in frame else _small(text))
        chance = rng.random()
        if chance < 0.08:
            text = text.lower().rstrip(".")
        elif chance < 0.14:
            text = text.rstrip(".")
        elif chance < 0.18:
            text = text.rstrip(".") + "!"
        return _filled(text, self.parts)


# One sentence that others can be put to.
PLAIN = re.compile(r"(?!.*[.:!?] )(I|My|I'm|I've|The) .*\.$")


def _together(source: Source, told: list[Told]) -> str:
    """Several things told in one message: in sentences of their own, or in one."""
    rng = source.rng
    texts = list[str]()
    for each in told:
        tells = [tell for tell in each.kind.tells if PLAIN.match(tell)] or list(each.kind.tells)
        texts.append(_filled(rng.choice(tells), each.parts))
    joined = rng.random()
    if len(told) == 1 or joined < 0.5 or not all(map(PLAIN.match, texts)):
        return " ".join(texts)
    parts = [text.rstrip(".") for text in texts]
    parts = parts[:1] + [_small(part) for part in parts[1:]]
    if joined < 0.6:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + f" and {parts[-1]}."


def _reply(source: Source, told: list[Told]) -> str:
    rng = source.rng
    named = [each for each in told if each.kind.name == "name"]
    one = named[0] if named else rng.choice(told)
    if not named and rng.random() < (0.5 if len(told) > 1 else 0.25):
        return rng.choice(GENERAL_REPLIES)
    return capital(_filled(rng.choice(one.kind.replies), one.parts))


def _of(source: Source, kind: Kind) -> str:
    of = source.rng.choice(kind.choices)
    return source.pick(of[1:]) if of.startswith("@") else of


def _fits(told: list[Told], kind: Kind, of: str) -> bool:
    """Whether a question for it has one answer, beside those that are told."""
    for each in told:
        if kind == each.kind and of == each.of:
            return False
        if kind.of_persons != each.kind.of_persons and kind.choices[0] and each.of:
            return False  # "my brother Tom" may be who is asked about
        names = {kind.name, each.kind.name}
        if len(names) == 2 and any(names <= alike for alike in ALIKE):
            return False
    return True


def _some(source: Source, number: int) -> list[Told]:
    """Things to tell, no two of which answer the same question."""
    told = list[Told]()
    while len(told) < number:
        (kind,) = source.rng.choices(KINDS, WEIGHTS)
        if told and source.rng.random() < 0.2:
            kind = source.rng.choice(told).kind
        of = _of(source, kind)
        value = _value(source, kind.filler)
        if _fits(told, kind, of) and value not in (each.value for each in told) and value != of:
            told.append(Told(kind, of, value))
    return told


def _apart(told: list[Told], plain: Plain, talk: list[str]) -> Plain:
    """Other talk, kept in `talk`, that says nothing of whom something is told about."""
    names = {each.of for each in told if each.kind.of_persons}
    if any(each.kind.name == "assistant name" for each in told):
        names |= {"name", "are you", "called", "call you"}

    def turn(source: Source) -> Turn:
        while True:
            made = plain(source)
            text = f"{made.question} {made.answer}"
            if len(text) < 400 and not any(name.lower() in text.lower() for name in names):
                talk.append(text)
                return made

    return turn


def _unknown(source: Source, told: list[Told], talk: list[str]) -> Turn:
    """A question for what was not told, often one of a kind that was."""
    rng = source.rng
    while True:
        (kind,) = rng.choices(KINDS, WEIGHTS)
        if rng.random() < 0.4:
            kind = rng.choice(told).kind
        elif rng.random() < 0.4:
            words = {each.of for each in told} - {""}
            near = [each for each in KINDS if words & set(each.choices)]
            kind = rng.choice(near or [kind])
        of = _of(source, kind)
        known = [each.of for each in told if each.of in kind.choices and each.of]
        if known and rng.random() < 0.5:
            of = rng.choice(known)
        heard = kind.of_persons and any(of.lower() in text.lower() for text in talk)
        if kind.name != "assistant name" and not heard and _fits(told, kind, of):
            return Turn.unknown(Told(kind, of, "").question(source))


def _change(source: Source, told: list[Told]) -> Turn:
    """The value of one of `told` becomes another, which takes its place."""
    rng = source.rng
    at = rng.randrange(len(told))
    old = told[at]
    while True:
        value = _value(source, old.kind.filler)
        if value not in {each.value for each in told} and value != old.of:
            break
    told[at] = replace(old, value=value)
    said = told[at].said(source, rng.choice(CHANGES))
    reply = rng.choice(CHANGE_REPLIES) if rng.random() < 0.5 else _reply(source, [told[at]])
    return Turn(said, reply)


def _told_turns(source: Source, told: list[Told], plain: Plain) -> list[Turn]:
    """Each thing in a message of its own, or some together, with other talk between."""
    rng = source.rng
    turns, rest = list[Turn](), list(told)
    while rest:
        number = rng.choice((1, 1, len(rest)))
        part, rest = rest[:number], rest[number:]
        text = part[0].said(source) if number == 1 else _together(source, part)
        turns.append(Turn(text, _reply(source, part)))
        turns += [plain(source) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)) if rest else 0)]
    return turns


def _asked(source: Source, told: list[Told], plain: Plain, talk: list[str]) -> list[Turn]:
    """One to three questions, at times for what was not told."""
    rng = source.rng
    turns = list[Turn]()
    for each in rng.sample(told, min(len(told), rng.choice((1, 1, 2, 3)))):
        if rng.random() < 0.25:
            turns.append(_unknown(source, told, talk))
            if rng.random() < 0.5:
                continue
        turns.append(Turn(each.question(source), each.answer))
        if each != told[-1] and rng.random() < 0.15:
            turns.append(plain(source))
    mine = all(each.kind.answer.startswith("You") for each in told)
    if mine and rng.random() < 0.08:
        turns.append(Turn(rng.choice(SUMMARIES), " ".join(each.answer for each in told)))
    return turns


def dialog(source: Source, plain: Plain) -> list[Message]:
    """Something told, other talk, and questions for it."""
    rng = source.rng
    told = _some(source, rng.choice((1, 1, 1, 2, 2, 3, 4)))
    talk = list[str]()
    plain = _apart(told, plain, talk)
    system = rng.choice(SYSTEMS) if rng.random() < 0.1 else ""
    kind = rng.random()
    if kind < 0.08 and all(each.kind.name != "assistant name" for each in told):
        system = rng.choice(NOTES).replace("{}", _together(source, told).strip())
        turns = [plain(source) for _ in range(rng.choice((0, 0, 1, 2)))]
        return dialog_of(system, [*turns, *_asked(source, told, plain, talk)])
    if kind < 0.16:
        text = _together(source, told).strip()
        text += "" if text[-1] in ".!?" else "."
        first, *turns = _asked(source, told, plain, talk)
        first = replace(first, question=f"{text} {capital(first.question)}")
        return dialog_of(system, [first, *turns])
    turns = [plain(source)] if rng.random() < 0.15 else []
    turns += _told_turns(source, told, plain)
    if rng.random() < 0.1:
        turns += [plain(source) for _ in range(rng.choice((0, 1)))]
        turns.append(_change(source, told))
    turns += [plain(source) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4)))]
    return dialog_of(system, turns + _asked(source, told, plain, talk))
