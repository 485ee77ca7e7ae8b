import random
import re
from itertools import pairwise

from examples.tiny_data import remembered
from examples.tiny_data.remembered import BY_NAME, KINDS, VALUES, Told, _together
from examples.tiny_data.turns import UNKNOWN, Source, Turn

WORDS = ("cat", "tree", "happy", "rainbow", "letters", "spoon", "florin", "walter", "grumple")


def plain(source: Source) -> Turn:
    if source.rng.random() < 0.5:
        name = source.pick("person")
        return Turn(f"{name} lives in Qqq. Where does {name} live?", f"{name} lives in Qqq.")
    return Turn("What is 1 + 1?", "1 + 1 = 2.")


def dialogs(number: int, seed: int = 1) -> list[list]:
    source = Source(random.Random(seed), WORDS, ())
    return [remembered.dialog(source, plain) for _ in range(number)]


def test_same_seed_same_dialogs() -> None:
    assert dialogs(200) == dialogs(200)
    assert dialogs(200) != dialogs(200, seed=2)


def test_there_are_many_kinds_and_ways() -> None:
    assert len(KINDS) >= 60
    assert len(BY_NAME) == len(KINDS)
    for kind in KINDS:
        assert len(set(kind.tells)) == len(kind.tells) >= 5, kind.name
        assert len(set(kind.asks)) == len(kind.asks) >= 8, kind.name
        assert len(kind.replies) >= 2, kind.name
        assert "{v}" in kind.answer
        assert all("{v}" in tell for tell in kind.tells), kind.name
        assert not any("{v}" in ask for ask in kind.asks), kind.name
        if kind.choices[0]:
            assert all("{k}" in text for text in (*kind.tells, *kind.asks, kind.answer)), kind.name
    assert all(len(values) >= 8 for values in VALUES.values())


def test_messages_take_turns_and_are_filled() -> None:
    for dialog in dialogs(3000):
        roles = [message["role"] for message in dialog]
        start = roles[0] == "system"
        assert roles[start:] == ["user", "assistant"] * (len(roles[start:]) // 2)
        for message in dialog:
            assert message["content"].strip()
            assert not re.search(r"[{}]|@|\ban [^aeiou\W]|\ba [aeiou]", message["content"])
        assert sum(len(message["content"]) for message in dialog) < 3000


# How to find, in an answer of a kind, what must have been said before.
VALUE = re.compile(
    r"Your name is ([^.]+)\.|You live in ([^.]+)\.|You are (\d+) years old\.|You work as ([^.]+)\."
    r"|Your \w+'s name is ([^.]+)\.|Your \w+ lives in ([^.]+)\."
    r"|The [\w ]+ is (\w+)\.|You bought ([^.]+)\."
    r"|Your favorite \w+ is ([^.]+)\.|You speak ([^.]+)\.|You are allergic to ([^.]+)\."
)


def test_answers_are_what_the_user_said_last() -> None:
    found = 0
    for dialog in dialogs(4000):
        said = ""
        for message in dialog:
            match = VALUE.fullmatch(message["content"])
            if message["role"] == "assistant" and match:
                value = next(filter(None, match.groups()))
                assert value.lower() in said.lower(), dialog
                found += 1
            if message["role"] != "assistant":
                said += message["content"] + "\n"
    assert found > 1000


def test_what_was_not_told_is_not_known() -> None:
    answers = [message["content"] for dialog in dialogs(2000) for message in dialog[1:]]
    assert 0.05 < answers.count(UNKNOWN) / (len(answers) / 2) < 0.2
    for dialog in dialogs(3000):
        for question, answer in pairwise(dialog):
            if answer["content"] == UNKNOWN and question["content"] == "What is my name?":
                said = " ".join(m["content"] for m in dialog if m["role"] != "assistant")
                assert not re.search(r"(my name is|call me|\bI'?a?m called) [A-Z]", said)


def test_a_later_value_counts() -> None:
    source = Source(random.Random(3), WORDS, ())
    told = [Told(BY_NAME["home"], "", "Oslo")]
    turn = remembered._change(source, told)
    assert told[0].value != "Oslo"
    assert told[0].value in turn.question
    assert told[0].answer == f"You live in {told[0].value}."


def test_things_are_told_in_one_message() -> None:
    told = [
        Told(BY_NAME["name"], "", "Clara"),
        Told(BY_NAME["age"], "", "9"),
        Told(BY_NAME["home"], "", "Oslo"),
    ]
    texts = {_together(Source(random.Random(seed), WORDS, ()), told) for seed in range(300)}
    assert "I'm Clara, I'm 9 and I live in Oslo." in texts or len(texts) > 150
    assert all("Clara" in text and "9" in text and "Oslo" in text for text in texts)


def test_persons_told_of_are_in_no_other_talk() -> None:
    for dialog in dialogs(3000):
        texts = [m["content"] for m in dialog if m["role"] == "user"]
        others = {m[1] for text in texts for m in re.finditer(r"(\w+) lives in Qqq", text)}
        for text in texts:
            told = re.search(r"(?:friend|Remember that) (\w+) (?:lives|likes|plays|works)", text)
            assert not told or told[1] not in others
