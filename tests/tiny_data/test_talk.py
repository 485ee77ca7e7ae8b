"""Small talk, limits and personas, read by readers that know nothing of their making."""

import random
import re

import pytest

from examples.tiny_data import personas, talk
from examples.tiny_data.turns import Source
from examples.tiny_data.wording import groups, with_slip, wordings
from llama.agents.experts import COMBINE

WORDS = ("walnut", "harbor", "velvet", "lantern", "spoon")
MAKERS = (talk.dialog, personas.dialog)


def source(seed: int = 1) -> Source:
    return Source(random.Random(seed), WORDS, ())


def dialogs(make, number: int = 1500, seed: int = 1) -> list:
    one = source(seed)
    return [make(one) for _ in range(number)]


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_seed_makes_the_same_dialogs(make) -> None:
    assert dialogs(make, 50) == dialogs(make, 50)
    assert dialogs(make, 50) != dialogs(make, 50, seed=2)


@pytest.mark.parametrize("make", MAKERS)
def test_all_placeholders_are_filled_and_roles_alternate(make) -> None:
    for dialog in dialogs(make):
        roles = [message["role"] for message in dialog if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) != []
        for message in dialog:
            text = message["content"]
            assert text == text.strip() != ""
            assert not re.search(r"[{}<>|]|\[(?!\d|[A-Za-z ]+\] )|  |\\n", text), text
        assert sum(len(message["content"]) for message in dialog) < 3000


def test_there_are_many_ways_to_say_things() -> None:
    lines = [line for lines, _ in talk.table("talk.txt") for line in lines]
    assert len(talk.table("talk.txt")) >= 150
    assert sum(1 for line in lines for _ in wordings(line)) >= 1500
    asked = [line for lines, _ in talk.table("limits.txt") for line in lines]
    assert len(asked) >= 240
    assert sum(1 for line in asked for _ in wordings(line)) >= 2000
    assert len(personas.roles()) >= 80
    assert all(len(role.answers) >= 6 for role in personas.roles())
    assert len(groups("personas.txt")[0]) >= 40


def test_every_group_has_lines_and_replies_of_one_or_two_sentences() -> None:
    for file in ("talk.txt", "limits.txt"):
        for lines, replies in talk.table(file):
            assert lines
            assert replies
            for reply in replies:
                for text in wordings(reply):
                    assert len(text) < 120
                    assert text[-1] in ".!?", text
                    kinds = set(re.findall("<.*?>", text))
                    assert all(kinds <= set(re.findall("<.*?>", line)) for line in lines)


def test_what_the_model_does_not_know_it_says() -> None:
    one = source()
    for _ in range(1000):
        assert re.search(r"don't know|can't|too small|only English", talk.limits_turn(one).answer)


def test_a_turn_for_anywhere_does_not_deny_what_was_told() -> None:
    one = source()
    for _ in range(3000):
        for turn in (talk.turn(one), talk.limits_turn(one)):
            assert "told me" not in turn.answer
            assert "don't know you" not in turn.answer


def test_words_of_short_answers_begin_the_answer() -> None:
    one = source()
    turns = [talk.turn(one) for _ in range(2000)]
    assert {turn.word for turn in turns} == {None, "Yes.", "No."}
    for turn in turns:
        assert turn.sentence is not None
        assert turn.answer.startswith(turn.sentence)
        assert turn.word is None or turn.answer.startswith(turn.word[:-1])


def test_what_a_persona_is_stands_in_its_prompt() -> None:
    seen = 0
    for dialog in dialogs(personas.in_role, 2000):
        prompt = dialog[0]["content"]
        for message in dialog[1:]:
            role = re.match(r"I am an? ([a-zA-Z ]+)\.", message["content"])
            if message["role"] == "assistant" and role:
                seen += 1
                assert role[1] in prompt, (prompt, message)
    assert seen > 500


def test_facts_of_prompts_are_found_or_not_known() -> None:
    facts = {re.split("<", group[0])[0] for group in groups("persona_facts.txt")}
    seen = unknown = 0
    for dialog in dialogs(personas.in_role, 2000):
        prompt = dialog[0]["content"]
        for message in dialog[1:]:
            if message["role"] != "assistant":
                continue
            if any(message["content"].startswith(fact) for fact in facts):
                seen += 1
                assert message["content"] in prompt
            unknown += message["content"] == "I don't know."
    assert seen > 300
    assert unknown > 50


def test_the_prompt_that_combines_is_that_of_the_agents() -> None:
    assert personas.COMBINE == COMBINE


def test_what_is_combined_was_said_by_experts() -> None:
    named = numbered = unknown = 0
    for dialog in dialogs(personas.combined, 2000):
        asked, answer = (message["content"] for message in dialog[-2:])
        if asked.startswith("Answer from these passages."):
            said = re.findall(r"^\[\d\] (.*)$", asked, re.M)
            useful = [
                text for text in said if not re.match(r"I don't know|I can't|I am an? ", text)
            ]
            assert answer == (" ".join(useful) or "I don't know."), dialog
            numbered, unknown = numbered + 1, unknown + (not useful)
            continue
        parts = re.findall(r"The ([A-Za-z ]+) says: (.*?)(?= The [A-Za-z ]+ says: |$)", answer)
        assert len(parts) >= 2
        named += 1
        for role, text in parts:
            assert re.search(rf"{role}\W+(?:says: )?{re.escape(text)}", asked, re.I), dialog
    assert min(named, numbered) > 600
    assert unknown > 50


def test_a_slip_keeps_the_letters_or_loses_one() -> None:
    for seed in range(200):
        text = "please tell another story"
        slipped = with_slip(random.Random(seed), text)
        assert len(text) - 1 <= len(slipped) <= len(text)
        assert [word[0] for word in slipped.split()] == [word[0] for word in text.split()]


def test_a_prompt_that_asks_to_refuse_names_nobody_else() -> None:
    refused = 0
    for dialog in dialogs(personas.in_role, 3000):
        answers = [message["content"] for message in dialog[2::2]]
        if "say that you can't help" in dialog[0]["content"]:
            refused += sum("I can't help with that." in answer for answer in answers)
            assert not any("Please ask " in answer and "I am a" in answer for answer in answers)
        elif "efuse" not in dialog[0]["content"]:
            assert not any("I can't help with that." in answer for answer in answers)
    assert refused > 20
