"""Puts the core of a question as people write: politely, curtly, in lower case, with slips.

Tables of wordings stand in text files: lines `[section]`, and below it one wording per line.
`<a|b>` in it is one of its parts. The last word of a section's name says what its wordings are:

ask   a question without its mark, "what is {a} plus {b}"
do    a request, "add {a} and {b}"
tell  what follows on "tell me", "how much {a} plus {b} is"
say   a whole message
"""

import random
import re
from functools import cache
from pathlib import Path

WORDINGS = "asking.txt"
ENDS = ("?",) * 7 + (".", "??", " ?", ", please?", " please?")
SHORT = (
    (r"\b(w)hat is\b", r"\1hats"),
    (r"\b(W|w)hat is\b", r"\1hat's"),
    (r"\bplease\b", "pls"),
    (r"\byou\b", "u"),
    (r"\bare\b", "r"),
    (r"\band\b", "n"),
    (r"\band\b", "&"),
    (r"\bI'm\b", "im"),
    (r"'", ""),
)


@cache
def sections(file: str) -> dict[str, tuple[str, ...]]:
    """Lines of a text file beside this one, by section."""
    found = dict[str, list[str]]()
    for line in (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            lines = found.setdefault(line.strip("[] "), [])
        elif line.strip():
            lines.append(line.strip())
    return {name: tuple(lines) for name, lines in found.items()}


def chosen(rng: random.Random, text: str) -> str:
    """The text with one part of each `<a|b>`, the innermost first."""
    while match := re.search(r"<([^<>]*)>", text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return re.sub(r"  +", " ", text).strip()


def count(text: str) -> int:
    """How many wordings a line stands for."""
    if match := re.search(r"<([^<>]*)>", text):
        parts = match[1].split("|")
        return sum(count(text[: match.start()] + part + text[match.end() :]) for part in parts)
    return 1


def wording(rng: random.Random, table: dict[str, tuple[str, ...]], topic: str) -> str:
    """A message with places to fill in, from the sections of a topic, a line like another."""
    names = [name for name in table if name.rpartition(" ")[0] == topic]
    name = rng.choices(names, [len(table[name]) for name in names])[0]
    return put(rng, name.rpartition(" ")[2], chosen(rng, rng.choice(table[name])))


def put(rng: random.Random, kind: str, core: str) -> str:
    """A message around a core of a kind."""
    table = sections(WORDINGS)
    if kind == "ask":
        text = core + rng.choice(ENDS)
    elif kind == "do":
        odds = rng.random()
        if odds < 0.4:
            text = core if core[-1] in "=_." else core + rng.choice(".....!")
        elif odds < 0.6:
            text = rng.choice(("please {}.", "{}, please.", "{} please", "{} for me.")).format(core)
        else:
            text = rng.choice(table["do"]).replace("{}", core)
    elif kind == "tell":
        text = rng.choice(table["tell"]).replace("{}", core)
    else:
        text = core
    odds = rng.random()
    if odds < 0.12:
        text = f"{rng.choice(table['openings'])} {text}"
    elif odds < 0.2:
        text = f"{rng.choice(table['greetings'])} {text}"
    if rng.random() < 0.08 and kind != "say":
        text += f" {rng.choice(table['closings'])}"
    return sloppy(rng, _capitals(text))


def sloppy(rng: random.Random, text: str) -> str:
    """Now and then as people type who are in a hurry. Places to fill in stay as they are."""
    if rng.random() < 0.08:
        pattern, short = rng.choice(SHORT)
        text = re.sub(pattern, short, text)
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.2:
        text = re.sub(r"[.?!]$", "", text)
    if rng.random() < 0.01:
        start, place, rest = text.partition("{")
        text = start.upper() + place + rest
    if rng.random() < 0.05:
        text = _slip(rng, text)
    return text


def _slip(rng: random.Random, text: str) -> str:
    """One long word with two letters swapped, one left out or one doubled."""
    words = [match for match in re.finditer(r"(?<![{\w'])[A-Za-z]{4,}(?![\w}'])", text)]
    if not words:
        return text
    word = rng.choice(words)
    i = rng.randint(word.start() + 1, word.end() - 2)
    changed = (text[i + 1] + text[i], text[i + 1], text[i] * 2 + text[i + 1])
    return text[:i] + rng.choice(changed) + text[i + 2 :]


def _capitals(text: str) -> str:
    """A capital letter at the start of each sentence, but none within a place to fill in."""
    return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda match: match[0].upper(), text)
