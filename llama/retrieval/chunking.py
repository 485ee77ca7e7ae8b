"""Documents in chunks that follow their structure, counted in a model's own tokens.

    chunks = split_document(document, count_tokens, size=256, overlap=32)
    document.text[chunks[0].start : chunks[0].end]

A chunk stays within one section and one page, ends with a paragraph where it is at least half full,
else with a sentence, and repeats the last sentences of the one before it, as far as they have
`overlap` tokens.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from llama.retrieval.parsing import Document

# After a sentence: its closing mark, with the space behind it where the script has spaces.
SENTENCE_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+|"
    r"[\u3002\uff01\uff1f\uff1b\uff61]+[\u201d\u2019\u300d\u300f\uff09\u3011]*\s*|\n\s*"
)
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")


class Chunk(NamedTuple):
    """A part of a document's text: its offsets, the headings above it, and its page."""

    start: int
    end: int
    heading: str
    page: int | None


class _Unit(NamedTuple):
    """A sentence with the white space after it."""

    start: int
    end: int
    tokens: int


def split_document(
    document: Document, count_tokens: Callable[[str], int], size: int, overlap: int
) -> list[Chunk]:
    """Chunks of at most `size` tokens, which are the sum of their sentences' tokens.

    They hold every character that is no white space. Headings are joined by " > "; one without a
    text of its own is in the headings of the sections below it.
    """
    chunks = []
    parts = [
        (start, end, heading)
        for *section, heading in _sections(document)
        for start, end in _pages(document, *section)
    ]
    for start, end, heading in parts:
        for first, last in _packed(document.text, start, end, count_tokens, size, overlap):
            text = document.text[first:last]
            first += len(text) - len(text.lstrip())
            last -= len(text) - len(text.rstrip())
            chunks.append(Chunk(first, last, heading, document.page(first)))
    return chunks


def _pages(document: Document, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a section on each page: a citation of a page has to be exact."""
    yield from pairwise([start, *(page for page in document.pages if start < page < end), end])


def _sections(document: Document) -> Iterator[tuple[int, int, str]]:
    """The start, end and headings of each part of a text that no heading interrupts."""
    text, above = document.text, list[tuple[int, str]]()
    first = document.headings[0].start if document.headings else len(text)
    if text[:first].strip():
        yield 0, first, ""
    starts = [heading.start for heading in document.headings]
    ends = [*starts[1:], len(text)] if starts else []
    levels = [heading.level for heading in document.headings]
    below = [*levels[1:], 0] if levels else []
    for heading, end, next_level in zip(document.headings, ends, below, strict=True):
        above = [(level, title) for level, title in above if level < heading.level]
        above.append((heading.level, heading.title))
        has_text = len(text[heading.start : end].strip().splitlines()) > 1
        if has_text or next_level <= heading.level:
            yield heading.start, end, " > ".join(title for _, title in above)


def _packed(
    text: str, start: int, end: int, count: Callable[[str], int], size: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """The offsets of a section's chunks."""
    current: list[_Unit] = []
    has_new = False  # beside what is repeated of the last chunk
    for first, last in spans(text, start, end, _PARAGRAPH_END):
        units = [
            unit
            for sentence in spans(text, first, last, SENTENCE_END)
            for unit in _units(text, *sentence, count, size)
        ]
        tokens = _tokens(current)
        if has_new and tokens >= size / 2 and tokens + _tokens(units) > size:
            yield current[0].start, current[-1].end
            current, has_new = _tail(current, overlap), False
        for unit in units:
            if has_new and _tokens(current) + unit.tokens > size:
                yield current[0].start, current[-1].end
                current, has_new = _tail(current, overlap), False
            while current and _tokens(current) + unit.tokens > size:
                current = current[1:]
            current.append(unit)
            has_new = True
    if has_new:
        yield current[0].start, current[-1].end


def _tokens(units: list[_Unit]) -> int:
    return sum(unit.tokens for unit in units)


def _tail(units: list[_Unit], overlap: int) -> list[_Unit]:
    """The last units, of at most `overlap` tokens."""
    tail: list[_Unit] = []
    while len(tail) < len(units) and _tokens(tail) + units[-1 - len(tail)].tokens <= overlap:
        tail.insert(0, units[-1 - len(tail)])
    return tail


def spans(text: str, start: int, end: int, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The parts of text[start:end], each with the separator after it; none is white space."""
    for match in separator.finditer(text, start, end):
        if text[start : match.end()].strip():
            yield start, match.end()
            start = match.end()
    if text[start:end].strip():
        yield start, end


def _units(
    text: str, start: int, end: int, count: Callable[[str], int], size: int
) -> Iterator[_Unit]:
    """A sentence; one that is longer than a chunk in halves, between words where it has spaces."""
    tokens = count(text[start:end])
    if tokens <= size or end - start < 2:
        yield _Unit(start, end, tokens)
        return
    middle = (start + end) // 2
    space = text.rfind(" ", start + 1, middle)
    middle = space + 1 if space > start + (end - start) // 4 else middle
    yield from _units(text, start, middle, count, size)
    yield from _units(text, middle, end, count, size)
