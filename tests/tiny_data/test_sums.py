"""Sums are reckoned again by Python, from the answers and from the numbers of the questions."""

import random
import re

import pytest

from examples.tiny_data import sums
from examples.tiny_data.asking import count, sections
from examples.tiny_data.turns import Source, Turn

WORDS = ("cat", "tree", "happy", "rainbow", "letters", "spoon", "bicycle", "window")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
VALUES = {name: i for i, name in enumerate(ONES)} | {
    name: 10 * i
    for i, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}


def source(seed: int = 1) -> Source:
    return Source(random.Random(seed), WORDS, ())


def made(kind: str, number: int = 3000, seed: int = 1) -> list[Turn]:
    of = source(seed)
    return [getattr(sums, kind)(of) for _ in range(number)]


def numbers(text: str) -> list[int]:
    """All numbers of a text, in digits or words."""
    names = "|".join(sorted(VALUES, key=len, reverse=True))
    found = re.findall(rf"\d+|\b(?:{names})(?:-(?:{names}))?(?![a-z])", text.lower())
    return [
        int(each) if each.isdigit() else sum(VALUES[part] for part in each.split("-"))
        for each in found
    ]


def parts(turn: Turn) -> tuple[str, int, str]:
    """What is reckoned, the result and the sentence after it."""
    match = re.fullmatch(r"([\d +*/-]+) = (-?\d+)\.(?: (.+))?", turn.answer)
    assert match, turn
    return match[1], int(match[2]), match[3] or ""


@pytest.mark.parametrize("kind", ["bare", "chain", "problem"])
def test_results_are_right_and_made_of_the_numbers_of_the_question(kind: str) -> None:
    for turn in made(kind):
        expression, result, told = parts(turn)
        assert eval(expression) == result, turn
        missing = [n for n in numbers(expression) if n not in numbers(turn.question)]
        assert not missing or re.fullmatch(r"2 \* \d+|\d+ / 2", expression), turn  # half, twice
        assert turn.word == f"{result}."
        assert bool(told) == (kind == "problem")
        assert not told or re.search(rf"\b{result}\b", told)


def test_the_order_of_a_difference_is_the_one_that_is_asked_for() -> None:
    for turn in made("bare"):
        expression = parts(turn)[0]
        if match := re.fullmatch(r"(\d+) [-–] (\d+)", turn.question):
            assert expression == f"{match[1]} - {match[2]}"
        if match := re.search(r"(?:ubtract|ake away|ake|emove) (\d+) from (\d+)", turn.question):
            assert expression == f"{match[2]} - {match[1]}"
        if match := re.search(r"(\d+) (?:minus|take away) (\d+)", turn.question):
            assert expression == f"{match[1]} - {match[2]}"
        if match := re.search(r"ivide (\d+) by (\d+)", turn.question):
            assert expression == f"{match[1]} / {match[2]}"


def test_differences_below_zero_are_asked_for_in_one_order_only() -> None:
    below = [turn for turn in made("bare", 8000) if parts(turn)[1] < 0]
    assert 20 < len(below) < 800
    for turn in below:
        assert numbers(turn.question)[-2:] == numbers(parts(turn)[0])[:2], turn


def test_all_pairs_of_one_digit_are_drilled() -> None:
    seen = {parts(turn)[0] for turn in made("bare", 60000)}
    for a in range(10):
        for b in range(10):
            assert f"{a} + {b}" in seen
            assert a < b or f"{a} - {b}" in seen
    assert len(seen) > 15000


def test_divisions_leave_nothing() -> None:
    for turn in made("bare") + made("problem"):
        expression, result, _ = parts(turn)
        if " / " in expression:
            a, b = map(int, expression.split(" / "))
            assert b
            assert a == b * result


def test_stories_tell_the_answer_with_names_and_things_of_the_question() -> None:
    for turn in made("problem"):
        told = parts(turn)[2]
        for name in re.findall(r"(?<!^)(?<!\. )\b[A-Z]\w+", told):
            assert name.lower() in turn.question.lower(), turn
    assert len(sections(sums.PROBLEMS)["problems"]) >= 150


def test_a_sum_goes_on_with_the_result_before() -> None:
    of, went_on = source(), 0
    for _ in range(2000):
        dialog = [message for message in sums.dialog(of) if message["role"] != "system"]
        for (before, _), (asked, answer) in zip(
            pairs := list(zip(dialog[1::2], dialog[::2], strict=True)), pairs[1:], strict=False
        ):
            asked, answer = answer["content"], asked["content"]
            if re.fullmatch(r"(?i)(?:now )?(?:subtract|take away|add) (\d+)\.", asked):
                went_on += 1
                result = re.search(r"= (-?\d+)\.", before["content"])
                assert result
                assert answer.startswith(f"{result[1]} ")
    assert went_on > 30


def test_what_is_too_hard_is_not_reckoned() -> None:
    for turn in made("hard"):
        assert turn.answer.startswith("I don't know.")
    assert not any(parts(turn)[1] > 1998 for turn in made("bare", 20000))


def test_no_place_is_left_empty_and_seeds_decide() -> None:
    def text(seed: int) -> str:
        of = source(seed)
        return "\n".join(m["content"] for _ in range(2000) for m in sums.dialog(of))

    assert not re.search(r"[{}<|\[\]]|  ", text(1))
    assert text(1) == text(1) != text(2)


def test_wordings_are_many() -> None:
    table = sections(sums.WORDINGS)
    lines = {line for name, lines in table.items() for line in lines if "hard" not in name}
    assert len(lines) >= 300
    assert sum(map(count, lines)) >= 400
    plain = {re.sub(r"\d+", "N", turn.question) for turn in made("bare", 5000)}
    assert len(plain) > 2000
