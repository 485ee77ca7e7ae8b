"""Facts: what is answered stands in the text; what is not known does not."""

import random
import re

import pytest

from examples.tiny_data import fact_texts, facts, prose
from examples.tiny_data.claims import (
    ABOUT,
    AFTER,
    BEFORE,
    ORDERS,
    TRUE,
    asked,
    with_pronoun,
    with_s,
    without_s,
)
from examples.tiny_data.clipped import SHORT, clipped
from examples.tiny_data.layouts import MARKS, PARTS, PROMPTS, SOURCES
from examples.tiny_data.likeness import nearly, twin
from examples.tiny_data.relations import RELATIONS
from examples.tiny_data.turns import UNKNOWN, Exhausted, Source

WORDS = "window cloud strawberry table garden river lantern pepper wooden quick maple".split()
JOINED = set("s is years old comes".split())  # what is left out in "Mia, a baker from Rome, 34"
STORIES = (
    "Once there was a girl named Lily. The sun was bright. She saw a dog called Max.",
    "A boy named Tim went to the lake. The water was cold. He met a big frog called Fred.",
)


def _source(seed: int) -> Source:
    return Source(random.Random(seed), WORDS, STORIES)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_same_seed_same_dialogs() -> None:
    one, two = _source(5), _source(5)
    assert [facts.dialog(one) for _ in range(50)] == [facts.dialog(two) for _ in range(50)]


def test_an_answer_about_facts_that_are_alike_is_one_of_them() -> None:
    source, unknown = _source(7), 0
    for _ in range(600):
        try:
            dialog = facts.alike(source)
        except Exhausted:
            continue
        text = next(message["content"] for message in dialog if message["role"] == "user")
        answers = [message["content"] for message in dialog if message["role"] == "assistant"]
        assert len(set(answers)) == len(answers)
        for answer in answers:
            assert answer == UNKNOWN or answer in text
        unknown += UNKNOWN in answers
    assert 60 < unknown < 250


def test_dialogs_alternate_and_have_no_placeholders() -> None:
    source = _source(1)
    for _ in range(1500):
        dialog = facts.dialog(source)
        roles = [m["role"] for m in dialog if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
        for message in dialog:
            content = message["content"]
            assert content.strip()
            assert not re.search(r"\{[a-z]?\}|\\n| ,|[^.]\.\.$|[ap]\.m\.\.", content)
        assert sum(len(m["content"]) for m in dialog) < 3000
    for _ in range(300):
        assert not re.search(r"\{|\}", facts.text(source))


def test_sentences_of_claims_stand_in_prose() -> None:
    """An independent reader: each claim's words stand in one passage, near its value."""
    source = _source(2)
    for _ in range(800):
        text = prose.prose(source, 10)
        for claim in text.claims:
            passages = [p for p in text.passages if claim.value.lower() in p.lower()]
            assert passages, (claim, text.passages)
            content = _words(claim.clause) - _words(claim.subject) - JOINED
            assert any(len(content - _words(p)) == 0 for p in passages), (claim, text.passages)
            assert claim.subject.lower() in str(text).lower()


def test_nothing_that_is_nearly_told_is_asked_as_missing() -> None:
    relations = {relation.says[0]: relation for relation in RELATIONS}
    lives, moved = relations["{s} lives in {v}."], relations["{s} has moved to {v}."]
    born = relations["{s} was born in {v}."]
    assert nearly(lives, moved)
    assert not nearly(lives, born)
    works, employed = relations["{s} works in {v}."], relations["{s} works for {v}."]
    assert works.topic == employed.topic == "work"
    assert nearly(works, employed)


def test_known_questions_have_one_answer() -> None:
    source = _source(3)
    for _ in range(800):
        text = prose.prose(source, 10)
        answers: dict[str, set[str]] = {}
        for claim in text.claims:
            for form in claim.asks:
                answers.setdefault(form.replace("{s}", claim.subject), set()).add(claim.clause)
        assert all(len(clauses) == 1 for clauses in answers.values()), answers


@pytest.mark.parametrize("seed", range(3))
def test_missing_questions_have_no_answer(seed: int) -> None:
    source = _source(10 + seed)
    for i in range(500):
        text = prose.prose(source, 10) if i % 2 else fact_texts.some(source)
        told = {form.replace("{s}", c.subject).lower() for c in text.claims for form in c.asks}
        told |= {form.lower() for c in text.claims for form in c.who}
        for form, subject in text.missing:
            assert form.replace("{s}", subject).lower() not in told


def test_answers_are_claims_of_the_text() -> None:
    source = _source(4)
    known = unknown = 0
    for _ in range(1500):
        text, turns = facts._questions(source, 3)
        clauses = {claim.clause for claim in text.claims}
        for turn in turns:
            if turn.answer == UNKNOWN:
                unknown += 1
            elif turn.answer in clauses:
                known += 1
                assert turn.word is None or turn.word.strip(".").lower() in turn.answer.lower()
            if turn.few is not None and turn.few != UNKNOWN:
                assert len(turn.few.split()) <= 3
    assert 0.2 < unknown / (known + unknown) < 0.42


def test_texts_that_are_no_prose_hold_their_values() -> None:
    source = _source(6)
    for _ in range(1500):
        text = fact_texts.some(source)
        said = str(text).lower()
        for claim in text.claims:
            if claim.subject != "the list":
                assert claim.value.lower() in said, (claim, said)
                assert claim.value.lower() in claim.clause.lower()


def test_lists_are_counted() -> None:
    source = _source(7)
    for _ in range(100):
        text = fact_texts.numbered(source)
        (count,) = (claim for claim in text.claims if claim.subject == "the list")
        assert int(count.value) == len(text.passages[0].splitlines()) - 1


def test_turns_hold_their_text() -> None:
    source = _source(8)
    for _ in range(500):
        turn = facts.turn(source)
        assert turn.question.strip()
        assert turn.answer.strip()
        assert "{" not in turn.question


def test_there_are_many_wordings() -> None:
    assert len(prose.ASIDES) >= 150
    assert len(PROMPTS) + len(PARTS["intros"]) + len(PARTS["systems"]) >= 150
    assert len(set(MARKS)) + len(SOURCES) >= 30
    assert min(map(len, (ABOUT, AFTER, BEFORE, ORDERS, TRUE))) >= 15
    source = _source(9)
    asks = {asked(source, "Where does {s} live?", "Mia") for _ in range(3000)}
    assert len(asks) > 300


def test_verbs() -> None:
    pairs = {"lives": "live", "goes": "go", "teaches": "teach", "carries": "carry", "has": "have"}
    for third, plain in pairs.items():
        assert without_s(third) == plain
        assert with_s(plain) == third
    assert without_s("is") is None


def test_pronouns() -> None:
    assert with_pronoun("Where does {s} live?", "she") == "Where does she live?"
    assert with_pronoun("What is {s}'s job?", "he") == "What is his job?"
    assert with_pronoun("What is the age of {s}?", "he") == "What is the age of him?"


def test_short_questions_keep_their_subject() -> None:
    rng = random.Random(1)
    for form in (*SHORT, "Who is {s}'s boss?", "Where did {s} go?", "Where is {s}?"):
        ways = {clipped(rng, form) for _ in range(50)}
        assert form not in ways
        assert len(ways) > 1
        assert all(way.count("{s}") == 1 for way in ways)


def test_twins_are_others() -> None:
    source = _source(11)
    for _ in range(300):
        near = twin(source, "Anna Bell", "Tom met Anna Bell.")
        if near is not None:
            assert near != "Anna Bell"
            assert near.startswith("Anna ") or near.endswith(" Bell")


def test_one_relation_of_a_topic_is_told_of_a_subject() -> None:
    source = _source(12)
    for _ in range(1500):
        relations = {
            (f.subject, f.relation.topic, f.relation.says)
            for f in prose.some_facts(source, 10)
            if f.relation.topic
        }
        assert len(relations) == len({(subject, topic) for subject, topic, _ in relations})
