"""Answers about letters are checked from the word that they spell, and against the question."""

import random
import re
from collections import Counter

import pytest

from examples.tiny_data import letters
from examples.tiny_data.asking import count, sections
from examples.tiny_data.turns import Source, Turn

WORDS = tuple(
    """cat tree happy rainbow letters spoon bicycle window banana strawberry pepper assess sleepless
    garden elephant little science""".split()
)
KINDS = ("spelled", "counted", "length", "first_or_last", "contains", "backwards")


def source(seed: int = 1) -> Source:
    return Source(random.Random(seed), WORDS, ())


def made(kind: str, number: int = 2000) -> list[Turn]:
    of = source()
    return [getattr(letters, kind)(of) for _ in range(number)]


def word_of(answer: str) -> str:
    """The word that the first line of an answer spells."""
    return re.sub(r"\(\d+\)|-", "", answer.split("\n")[0]).lower()


@pytest.mark.parametrize("kind", KINDS)
def test_the_word_of_the_question_is_spelled(kind: str) -> None:
    for turn in made(kind):
        word = word_of(turn.answer)
        word = word[::-1] if kind == "backwards" else word
        assert re.search(rf"(?<![a-z]){word}(?![a-z])", turn.question.lower()), turn
        assert re.fullmatch(r"[A-Z](\(\d+\))?(-[A-Z](\(\d+\))?)*", turn.answer.split("\n")[0])


def test_letters_are_counted_with_a_running_count() -> None:
    counts = Counter[int]()
    for turn in made("counted"):
        line, told = turn.answer.split("\n")
        match = re.fullmatch(r"The letter ([a-z]) is found (\d+) times?\.", told)
        assert match, turn
        letter, number = match[1], int(match[2])
        counts[number] += 1
        assert number == word_of(line).count(letter)
        assert told.endswith(" time.") == (number == 1)
        marked = re.findall(r"([A-Z])\((\d+)\)", line)
        assert marked == [(letter.upper(), str(i + 1)) for i in range(number)]
        assert re.search(rf"(?i)(?<![a-z]){letter}(?![a-rt-z])", turn.question), turn
        assert turn.word == f"{number}."
    total = counts.total()
    assert 0.06 < counts[0] / total < 0.15
    assert sum(counts[n] for n in (2, 3, 4)) / total > 0.4
    assert min(counts[n] for n in (2, 3, 4)) > 50


def test_lengths_are_right() -> None:
    for turn in made("length"):
        line, told = turn.answer.split("\n")
        word = word_of(line)
        assert told == f"There are {len(word)} letters."
        assert re.findall(r"\d+", line) == [str(i + 1) for i in range(len(word))]


def test_first_and_last_letters_are_right() -> None:
    for turn in made("first_or_last"):
        line, told = turn.answer.split("\n")
        last = bool(re.search(r"\b(last|end)\b", turn.question.lower().replace("the end", "")))
        end = re.fullmatch(r"The (first|last) letter is ([A-Z])\.", told)
        assert end
        assert end[2] == word_of(line)[-1 if end[1] == "last" else 0].upper()
        if re.search(r"(?i)\b(first|begin|start|last|end)\b", turn.question):  # no slip in it
            assert last == (end[1] == "last"), turn


def test_what_a_word_contains_is_right() -> None:
    said = Counter[str]()
    for turn in made("contains"):
        line, told = turn.answer.split("\n")
        match = re.fullmatch(r"(Yes|No), the letter ([a-z]) is (not )?in it\.", told)
        assert match
        assert bool(match[3]) == (match[1] == "No")
        assert (match[2] in word_of(line)) == (match[1] == "Yes")
        said[match[1]] += 1
    assert min(said.values()) > 400


def test_what_follows_on_is_about_the_word_before() -> None:
    of, seen = source(), 0
    for _ in range(500):
        first, second = letters.follow_ups(of)[:2]
        word = word_of(second.answer)
        if word not in second.question.lower():
            seen += 1
            assert word_of(first.answer) in (word, word[::-1])
    assert seen > 100


def test_no_place_is_left_empty_and_seeds_decide() -> None:
    def text(seed: int) -> str:
        of = source(seed)
        return "\n".join(m["content"] for _ in range(1500) for m in letters.dialog(of))

    assert not re.search(r"[{}<>|\[\]]", text(1).replace("=>", ""))
    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(("topic", "least"), [("spell", 300), ("count", 190), ("length", 60)])
def test_wordings_are_many(topic: str, least: int) -> None:
    table = sections(letters.WORDINGS)
    lines = {line for name, found in table.items() if name.split()[0] == topic for line in found}
    assert sum(map(count, lines)) >= least
