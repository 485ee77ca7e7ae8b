"""Statements in any words, and what users say of themselves in them."""

import random
import re

import pytest

from examples.tiny_data import facts, statements
from examples.tiny_data.mixture import MAKERS
from examples.tiny_data.turns import UNKNOWN, Exhausted, Source
from llama import Message

WORDS = "cloud harbor melon window tiger fabric walnut stone meadow barrel engine violin".split()


def made(kind: str, count: int, seed: int = 1) -> list[list[Message]]:
    source, found = Source(random.Random(seed), WORDS, []), list[list[Message]]()
    while len(found) < count:
        try:
            dialog = MAKERS[kind](source)
        except Exhausted:
            continue
        assert isinstance(dialog, list)
        found.append(dialog)
    return found


@pytest.mark.parametrize("kind", ["free", "told before"])
def test_every_slot_is_filled_and_the_same_seed_says_the_same(kind: str) -> None:
    dialogs = made(kind, 500)
    assert dialogs == made(kind, 500)
    text = "\n".join(message["content"] for dialog in dialogs for message in dialog)
    assert not re.search(r"\{[a-z]+\}|[ap]\.m\.\.", text)
    assert len({dialog[-2]["content"] for dialog in dialogs}) > 450


def test_answers_are_statements_of_the_text() -> None:
    told = 0
    for dialog in made("free", 500):
        first = next(m["content"] for m in dialog if m["role"] == "user").lower()
        for message in dialog:
            if message["role"] == "assistant" and message["content"] != UNKNOWN:
                assert message["content"].lower().rstrip(".") in first
                told += 1
    assert told > 500


def test_a_third_at_most_is_not_in_the_text() -> None:
    answers = [
        message["content"]
        for dialog in made("free", 1000)
        for message in dialog
        if message["role"] == "assistant"
    ]
    assert 0.15 < answers.count(UNKNOWN) / len(answers) < 0.34


def test_no_question_has_two_answers() -> None:
    source = Source(random.Random(3), WORDS, [])
    for _ in range(300):
        try:
            text = statements.some(source)
        except Exhausted:
            continue
        questions = [
            form.replace("{s}", claim.subject)
            for claim in text.claims
            for form in (*claim.asks, *claim.who)
        ]
        assert len(questions) == len(set(questions))
        unsaid = {form.replace("{s}", subject) for form, subject in text.missing}
        assert not unsaid & set(questions)


def test_what_users_say_of_themselves_is_said_back_to_them() -> None:
    turned = 0
    for dialog in made("told before", 1000):
        said = "\n".join(m["content"] for m in dialog if m["role"] == "user").lower()
        answer = dialog[-1]["content"]
        if re.match(r"You(r)? ", answer) and not answer.startswith("You're"):
            back = re.sub(r"^Your ", "my ", answer)
            back = re.sub(r"^You ", "(i|we) ", back).rstrip(".")
            pattern = re.escape(back.lower()).replace(r"\(i\|we\)", "(i|we)")
            value = back.split()[-1].lower()
            assert re.search(pattern, said) or value in said, dialog
            turned += 1
    assert turned > 300


def test_short_turns_are_short() -> None:
    source, lengths = Source(random.Random(1), WORDS, []), list[int]()
    while len(lengths) < 200:
        try:
            lengths.append(len(facts.short_turn(source).question))
        except Exhausted:
            continue
    assert sum(lengths) / len(lengths) < 220
