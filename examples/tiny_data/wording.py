"""Wordings by a small grammar: [a|b] is one of both, <kind> is a filler of `Source.pick`."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from examples.tiny_data.turns import Source

_CHOICE = re.compile(r"\[([^][]*)\]")
_KIND = re.compile(r"<([a-z ]+)>")


def choose(rng: random.Random, text: str) -> str:
    """One of the wordings that a text stands for; the innermost choices are made first."""
    while match := _CHOICE.search(text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return re.sub(r" +(?=[.?!,]( |$))| +(?= )", "", text).strip()


def wordings(text: str) -> Iterator[str]:
    """All wordings that a text stands for."""
    match = _CHOICE.search(text)
    if match is None:
        yield re.sub(r" {2,}", " ", text).strip()
        return
    for part in match[1].split("|"):
        yield from wordings(text[: match.start()] + part + text[match.end() :])


def fill(source: Source, *texts: str) -> list[str]:
    """The texts with a filler for each kind, the same one in all of them."""
    kinds = dict.fromkeys(kind for text in texts for kind in _KIND.findall(text))
    fillers = {kind: source.pick(kind) for kind in kinds}
    filled = [_KIND.sub(lambda match: fillers[match[1]], text) for text in texts]
    return [text[:1].upper() + text[1:] for text in filled]


def typed(rng: random.Random, text: str) -> str:
    """As people type: now and then in lower case, without the last mark, or with a slip."""
    kind = rng.random()
    if kind < 0.75:
        return text
    if kind < 0.83:
        return text[:1].lower() + text[1:] if not re.match(r"I\b", text) else text
    if kind < 0.9:
        return text.rstrip(".?!")
    if kind < 0.95:
        return text.lower().rstrip(".?!")
    if kind < 0.97:
        return text.replace("'", "")
    if kind < 0.98:
        return text.rstrip(".") + rng.choice(("!", "!!", " :)", "...", " ?", " please"))
    return with_slip(rng, text)


def with_slip(rng: random.Random, text: str) -> str:
    """Two letters in the middle of a long word change places, or one is missing."""
    words = [match.span() for match in re.finditer(r"\b[a-z]{5,}\b", text)]
    if not words:
        return text
    start, end = rng.choice(words)
    at = rng.randrange(start + 1, end - 2)
    pair = text[at + 1] + text[at] if rng.random() < 0.6 else text[at]
    return text[:at] + pair + text[at + 2 :]


def groups(file: str) -> list[list[str]]:
    """The groups of lines of a file beside this one, which blank lines part."""
    text = (Path(__file__).parent / file).read_text("utf-8")
    blocks = re.split(r"\n\s*\n", text.strip())
    return [[line for line in block.splitlines() if line[:1] != "#"] for block in blocks]
