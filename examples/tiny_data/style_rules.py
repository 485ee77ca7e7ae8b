"""Rules of style: how they are put, and what they make of an answer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.tiny_data.turns import UNKNOWN, Source, Turn, capital


def sections(text: str) -> dict[str, tuple[str, ...]]:
    """The lines below each heading in brackets, without remarks."""
    found: dict[str, tuple[str, ...]] = {}
    heading = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\[([a-z ]+)\]", line):
            heading = match[1]
            found[heading] = ()
        elif line and heading:
            found[heading] += (line.replace("\\n", "\n"),)
    return found


def _listed(heading: str) -> tuple[str, ...]:
    return tuple(item.strip() for line in TEXTS[heading] for item in line.split(","))


def _pairs(heading: str) -> tuple[tuple[str, str], ...]:
    pairs = (line.split(": ", 1) for line in TEXTS[heading])
    return tuple((name, mark) for name, mark in pairs)


TEXTS = sections(Path(__file__).with_name("style.txt").read_text(encoding="utf-8"))
PHRASES = _listed("phrases")
TITLES = _listed("titles")
MARKS = tuple(TEXTS["marks"][0].split())
LABELS = tuple(TEXTS["labels"][0].split())
SOUNDS, WRAPS, SEPARATORS = _pairs("sounds"), _pairs("wraps"), _pairs("separators")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
# What says that a rule holds for more than the next answer.
STANDING = re.compile(
    r"\b(always|every|each|all|any|everything|never|answers|replies|messages|sentences|whenever"
    r"|you are|you're|your|they|remain|stay|remember|once|call|address|refer|from now on)\b",
    re.IGNORECASE,
)
# These hold for more than one answer, however they are put.
LASTING = ("call", "after")
SPEAKS = re.compile(r"(talk|speak|answer|say|give|reply|respond|write) ")
LONGEST = 500


@dataclass(frozen=True)
class Applied:
    """What a rule is said with, and what it makes of an answer: nothing where it makes no sense.

    A rule of a lower `order` comes first where there are two.
    """

    order: int
    change: Callable[[Turn, str], str | None]
    values: Mapping[str, str]


@dataclass(frozen=True)
class Demand:
    """A rule or two in words, {x} and {y} filled in later, and the answers they make."""

    names: tuple[str, ...]
    core: str
    rules: tuple[Applied, ...]

    @property
    def is_request(self) -> bool:
        return self.core[0].islower()

    @property
    def lasts(self) -> bool:
        if "creature" in self.names and not SPEAKS.match(self.core):
            return True
        return bool(STANDING.search(self.core) or set(self.names) & set(LASTING))

    def answer(self, turn: Turn) -> str | None:
        text: str | None = turn.answer
        if turn.answer.startswith("{") or len(turn.answer) > LONGEST:
            return None
        for rule in sorted(self.rules, key=lambda rule: rule.order):
            if text is not None:
                text = rule.change(turn, text)
        return text

    def filled(self, text: str) -> str:
        for rule in self.rules:
            for key, value in rule.values.items():
                text = text.replace(f"{{{key}}}", value)
        return text


# Words of a rule's own.


def _own_text(source: Source) -> str:
    rng = source.rng
    kind = rng.random()
    if kind < 0.3:
        word = rng.choice(source.words)
        return capital(word) if rng.random() < 0.4 else word
    if kind < 0.45:
        return source.pick("exclamation")
    if kind < 0.75:
        phrase = rng.choice(PHRASES)
        return capital(phrase) if rng.random() < 0.5 else phrase
    if kind < 0.9:
        return source.pick(rng.choice(("person", "town", "pet", "food", "thing", "color")))
    return " ".join(rng.choice(source.words) for _ in range(rng.randint(2, 4)))


def _shown(source: Source, text: str) -> tuple[str, bool]:
    """A text as a rule names it, and whether it is quoted, so that it counts as it stands."""
    rng = source.rng
    kind = rng.random()
    alone = " " not in text
    if kind < 0.4 and text[-1].isalnum():
        return text, False
    if kind < 0.55 and text[-1].isalnum():
        return f"the {'word' if alone else 'words'} {text}", False
    mark = rng.choice(('"{}"', '"{}"', "'{}'", "“{}”"))
    if kind > 0.75 and any(map(str.isalpha, text)):
        name = "word" if alone else rng.choice(("words", "phrase"))
        return f"the {name} {mark.format(text)}", True
    return mark.format(text), True


def _last(source: Source) -> tuple[str, str]:
    """What answers have to end with: as the rule names it, and as it is said."""
    text = source.rng.choice(MARKS) if source.rng.random() < 0.1 else _own_text(source)
    if text[-1].isalnum() and source.rng.random() < 0.2:
        text += source.rng.choice(".!!")
    shown, quoted = _shown(source, text)
    return shown, text if quoted else f"{text}."


def _first(source: Source) -> tuple[str, str]:
    kind = source.rng.random()
    text = _own_text(source)
    if kind < 0.15:
        text = source.rng.choice(MARKS if kind < 0.07 else LABELS)
    elif kind < 0.3 and text[-1].isalnum():
        text += source.rng.choice((".", "!", "!", ",", ":"))
    shown, _ = _shown(source, text)
    return shown, f"{text}," if text[-1].isalnum() else text


# Rules: each gives what it is said with, and what it does.


def _fixed(order: int, change: Callable[[Turn, str], str | None]) -> Callable[[Source], Applied]:
    return lambda source: Applied(order, change, {})


def _title(turn: Turn, text: str) -> str | None:
    if "\n" in text or re.search(r"[A-Z]-[A-Z]", text):
        return None
    return " ".join(map(capital, text.split(" ")))


def _excited(turn: Turn, text: str) -> str:
    return re.sub(r"[.?!](?=\s|$)|(?<=\w)$", "!", text)


def _twice(turn: Turn, text: str) -> str | None:
    return f"{text} {text}" if len(text) < 150 and "\n" not in text else None


def _question(turn: Turn, text: str) -> str | None:
    single = turn.question[-1] in ".?" and not re.search(r"[.!?:] |\n", turn.question[:90])
    single = single and len(turn.question) < 90
    return f"{turn.question} {text}" if single else None


def _single(turn: Turn, text: str) -> str | None:
    return turn.sentence or (None if re.search(r"[.!?] |\n", text) else text)


def _polite(turn: Turn, text: str) -> str | None:
    if turn.answer == UNKNOWN:
        return f"I am sorry. {text}"
    return None if turn.free else f"Certainly. {text}"


def _end(source: Source) -> Applied:
    shown, said = _last(source)
    return Applied(6, lambda turn, text: f"{text} {said}", {"x": shown})


def _begin(source: Source) -> Applied:
    shown, said = _first(source)
    return Applied(6, lambda turn, text: f"{said} {text}", {"x": shown})


def _both(source: Source) -> Applied:
    (shown, first), (shown_last, last) = _first(source), _last(source)
    values = {"x": shown, "y": shown_last}
    return Applied(6, lambda turn, text: f"{first} {text} {last}", values)


def _wrap(source: Source) -> Applied:
    name, marks = source.rng.choice(WRAPS)
    left, right = marks.split()
    space = " " if left in "-=+/|" else ""
    return Applied(7, lambda turn, text: f"{left}{space}{text}{space}{right}", {"x": name})


def _words(source: Source) -> Applied:
    most = source.rng.choice((2, 2, 3, 3, 3, 4, 5, 6))
    values = {"x": str(most), "z": str(most + 1)}
    if source.rng.random() < 0.5:
        values = {"x": NUMBERS[most], "z": NUMBERS[most + 1]}

    def change(turn: Turn, text: str) -> str | None:
        short = (turn.few, turn.word)
        return next((each for each in short if each and len(each.split()) <= most), None)

    return Applied(0, change, values)


def _call(source: Source) -> Applied:
    rng = source.rng
    title = source.pick("person") if rng.random() < 0.3 else rng.choice(TITLES)
    shown = title if rng.random() < 0.75 else f'"{title}"'

    def change(turn: Turn, text: str) -> str:
        start = text.rstrip(".!?")
        return f"{start}, {title}{text[len(start) :] or '.'}"

    return Applied(1, change, {"x": shown})


def _creature(source: Source) -> Applied:
    name, sound = source.rng.choice(SOUNDS)
    return Applied(5, lambda turn, text: f"{sound} {text}", {"x": name})


def _after(source: Source) -> Applied:
    shown, said = _last(source)

    def change(turn: Turn, text: str) -> str | None:
        if "\n" in text or text[-1] not in ".!?" or len(text) > 200:
            return None
        return " ".join(f"{part} {said}" for part in re.split(r"(?<=[.!?]) ", text))

    return Applied(4, change, {"x": shown})


def _between(source: Source) -> Applied:
    name, mark = source.rng.choice(SEPARATORS)

    def change(turn: Turn, text: str) -> str | None:
        if mark in text or "\n" in text or not 1 <= text.count(" ") <= 9:
            return None
        return text.replace(" ", mark)

    return Applied(8, change, {"x": name})


def _sign(source: Source) -> Applied:
    name = source.pick("person")
    return Applied(6, lambda turn, text: f"{text} - {name}", {"x": name})


RULES: dict[str, Callable[[Source], Applied]] = {
    "upper": _fixed(9, lambda turn, text: text.upper()),
    "lower": _fixed(9, lambda turn, text: text.lower()),
    "title": _fixed(3, _title),
    "end": _end,
    "begin": _begin,
    "both": _both,
    "wrap": _wrap,
    "twice": _fixed(3, _twice),
    "excited": _fixed(2, _excited),
    "bare": _fixed(2, lambda turn, text: text.rstrip(".!?")),
    "question": _fixed(5, _question),
    "word": _fixed(0, lambda turn, text: turn.word),
    "words": _words,
    "brief": _fixed(0, lambda turn, text: turn.few or turn.word),
    "sentence": _fixed(0, lambda turn, text: turn.sentence),
    "single": _fixed(0, _single),
    "bullet": _fixed(7, lambda turn, text: f"- {text}"),
    "number": _fixed(7, lambda turn, text: f"1. {text}"),
    "call": _call,
    "creature": _creature,
    "after": _after,
    "between": _between,
    "polite": _fixed(5, _polite),
    "sign": _sign,
}
WEIGHTS = {"upper": 4, "lower": 4, "end": 5, "begin": 5, "both": 2, "creature": 5, "word": 3}
WEIGHTS |= {"wrap": 3, "call": 3, "words": 2, "brief": 2, "excited": 2, "twice": 2, "sentence": 2}
CASES = ("upper", "lower")
PAIRS = tuple(
    (first, second)
    for firsts, seconds in (
        (
            CASES,
            "begin end both wrap twice excited creature call word words brief sentence".split(),
        ),
        (CASES, "sign polite bullet number after bare question begin end end creature".split()),
        (("word", "brief", "sentence"), "begin end wrap excited twice creature call".split()),
        (("creature", "polite", "call"), ("end", "excited", "wrap")),
        (("wrap",), ("begin", "twice", "excited", "creature")),
    )
    for first in firsts
    for second in seconds
)


def demand(source: Source, name: str) -> Demand:
    """A rule, put in one of its ways."""
    return Demand((name,), source.rng.choice(TEXTS[name]), (RULES[name](source),))
