import random
import re

import pytest

from examples.tiny_data import style
from examples.tiny_data.style_rules import RULES, SOUNDS, TEXTS, Demand, demand
from examples.tiny_data.turns import Source, Turn

WORDS = ("cat", "tree", "happy", "rainbow", "letters", "spoon", "florin", "walter", "grumple")
TURN = Turn("Where does Mia live?", "Mia lives in Rome.", "Rome.", "In Rome.", "Mia lives in Rome.")


def plain(source: Source) -> Turn:
    kind = source.rng.random()
    if kind < 0.3:
        a, b = source.rng.randint(2, 99), source.rng.randint(2, 99)
        few = f"{a + b}."
        return Turn(f"What is {a} + {b}?", f"{a} + {b} = {few}", few, few, f"{a} + {b} = {few}")
    if kind < 0.5:
        return Turn.unknown("How old is Mia?")
    if kind < 0.6:
        return Turn("Spell tree.", "T-R-E-E")
    if kind < 0.7:
        return Turn("Hi", "Hello! How are you?", "Hello!", "Hello, friend!", free=True)
    return TURN


def source(seed: int = 1) -> Source:
    return Source(random.Random(seed), WORDS, ())


def dialogs(number: int, seed: int = 1) -> list[list]:
    one = source(seed)
    return [style.dialog(one, plain) for _ in range(number)]


def demands(name: str, number: int = 60) -> list[Demand]:
    one = source(7)
    return [demand(one, name) for _ in range(number)]


def answers(name: str, turn: Turn = TURN) -> set[str | None]:
    return {one.answer(turn) for one in demands(name)}


def shown(one: Demand, key: str) -> str:
    """The text that a rule names, without what is around it."""
    text = re.sub(r"^the (words?|phrase) ", "", one.rules[0].values[key])
    return text[1:-1] if text[0] in "\"'“" else text


def test_same_seed_same_dialogs() -> None:
    assert dialogs(200) == dialogs(200)
    assert dialogs(200) != dialogs(200, seed=2)


def test_messages_take_turns_and_are_filled() -> None:
    for dialog in dialogs(3000):
        roles = [message["role"] for message in dialog]
        start = roles[0] == "system"
        assert roles[start:] == ["user", "assistant"] * (len(roles[start:]) // 2)
        assert len(roles) > 1
        for message in dialog:
            assert message["content"].strip()
            assert not re.search(r"\{|\}|None|\[[a-z ]+\]$", message["content"])
        assert sum(len(message["content"]) for message in dialog) < 3000


def test_each_rule_is_put_in_many_ways() -> None:
    for name in RULES:
        ways = TEXTS[name]
        assert len(set(ways)) == len(ways), name
        assert len(ways) >= 20, name
    texts = {dialog[0]["content"] for dialog in dialogs(5000) if dialog[0]["role"] == "system"}
    assert len(texts) > 2000


def test_most_rules_are_in_system_prompts() -> None:
    share = sum(dialog[0]["role"] == "system" for dialog in dialogs(2000)) / 2000
    assert 0.65 < share < 0.9


FIXED = {
    "upper": "MIA LIVES IN ROME.",
    "lower": "mia lives in rome.",
    "title": "Mia Lives In Rome.",
    "twice": "Mia lives in Rome. Mia lives in Rome.",
    "excited": "Mia lives in Rome!",
    "bare": "Mia lives in Rome",
    "question": "Where does Mia live? Mia lives in Rome.",
    "word": "Rome.",
    "brief": "In Rome.",
    "sentence": "Mia lives in Rome.",
    "single": "Mia lives in Rome.",
    "bullet": "- Mia lives in Rome.",
    "number": "1. Mia lives in Rome.",
    "polite": "Certainly. Mia lives in Rome.",
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_rules(name: str) -> None:
    assert answers(name) == {FIXED[name]}


def test_first_and_last_words() -> None:
    for one in demands("end"):
        answer = one.answer(TURN)
        assert answer in {f"{TURN.answer} {shown(one, 'x')}{stop}" for stop in ("", ".")}
    for one in demands("begin"):
        answer = one.answer(TURN)
        assert answer in {f"{shown(one, 'x')}{comma} {TURN.answer}" for comma in ("", ",")}
    for one in demands("both"):
        answer = one.answer(TURN) or ""
        assert answer.startswith(shown(one, "x"))
        assert answer.rstrip(".").endswith(shown(one, "y").rstrip("."))


def test_number_of_words() -> None:
    for one in demands("words"):
        most = one.rules[0].values["x"]
        number = dict(two=2, three=3, four=4, five=5, six=6).get(most) or int(most)
        assert len((one.answer(TURN) or "").split()) <= number


def test_creatures_have_their_sounds() -> None:
    for one in demands("creature"):
        sound = dict(SOUNDS)[one.rules[0].values["x"]]
        assert one.answer(TURN) == f"{sound} Mia lives in Rome."


def test_names_of_the_user_come_last() -> None:
    for one in demands("call"):
        assert one.answer(TURN) == f"Mia lives in Rome, {shown(one, 'x')}."


def test_no_answer_where_a_rule_makes_no_sense() -> None:
    spelled = Turn("Spell tree.", "T-R-E-E")
    assert answers("word", spelled) == answers("sentence", spelled) == {None}
    assert answers("upper", Turn("Rain?", '{"name": "get_rain"}')) == {None}


def test_rules_in_the_system_prompt_hold_for_all_turns() -> None:
    found = 0
    for dialog in dialogs(4000):
        system = dialog[0]["content"]
        if (
            "role" in dialog[0]
            and dialog[0]["role"] == "system"
            and "apital letters only" in system
        ):
            if "small" in system or len(dialog) > 7:
                continue
            for message in dialog[2::2]:
                assert message["content"].upper() == message["content"]
                found += 1
    assert found
