import random
import re
from collections import defaultdict
from itertools import pairwise

import pytest

from examples.tiny_data.fillers import BOYS, FILLERS, GIRLS, is_woman
from examples.tiny_data.relations import RELATIONS, SUBJECTS, Relation, relations_of

EACH = pytest.mark.parametrize(
    "relation", RELATIONS, ids=lambda relation: f"{relation.subject}: {relation.says[0]}"
)
SLOT = re.compile(r"\{.*?\}")


def filled(form: str, relation: Relation, rng: random.Random) -> str:
    kinds = {"{s}": relation.subject, "{v}": relation.kind}
    text = form.replace("{k}", rng.choice(relation.of))
    for slot, kind in kinds.items():
        text = text.replace(slot, FILLERS[kind](rng))
    return text


@EACH
def test_forms(relation: Relation) -> None:
    of = {"{k}"} if relation.of != ("",) else set()
    for form in relation.says:
        assert set(SLOT.findall(form)) == {"{s}", "{v}"} | of
        assert form.endswith(".")
    for form in relation.asks:
        assert set(SLOT.findall(form)) == {"{s}"} | of
        assert form.endswith(("?", "."))
    for form in relation.who:
        assert set(SLOT.findall(form)) == {"{v}"} | of
        assert form.endswith("?")
    every = relation.says + relation.asks + relation.who
    assert len(set(every)) == len(every)
    assert len(relation.says) >= 3
    assert len(relation.asks) >= 3


@EACH
def test_articles(relation: Relation) -> None:
    rng = random.Random(1)
    for form in relation.says + relation.asks + relation.who:
        for _ in range(5):
            for article, word in pairwise(re.findall(r"[\w'-]+", filled(form, relation, rng))):
                vowel = re.match(r"[ae]|i|o(?!ne\b)|u(?!ni|se|k)|hour", word)
                if article == "a":
                    assert not vowel, form
                elif article == "an":
                    assert vowel, form


def test_no_question_is_for_two_relations() -> None:
    asked = defaultdict[tuple[str, str], set[Relation]](set)
    for relation in RELATIONS:
        for form in relation.asks:
            for of in relation.of:
                asked[relation.subject, form.replace("{k}", of)].add(relation)
    shared = [question for question, relations in asked.items() if len(relations) > 1]
    assert not shared


def test_numbers() -> None:
    assert len(RELATIONS) >= 400
    assert len(set(SUBJECTS)) >= 30
    assert sum(len(relation.says) for relation in RELATIONS) >= 2000
    assert sum(len(relation.asks) for relation in RELATIONS) >= 2000


def test_a_subject_has_values_of_one_kind_in_several_relations() -> None:
    towns = [r for r in RELATIONS if (r.subject, r.kind) == ("person", "town")]
    assert len(towns) >= 10


def test_a_block_is_read() -> None:
    (relation,) = relations_of("a: b #c\n{s} is {v}. / {v} is {s}.\nWhat is {s}?")
    expected = Relation("a", "b", ("",), ("{s} is {v}.", "{v} is {s}."), ("What is {s}?",), (), "c")
    assert vars(relation) == vars(expected)


@pytest.mark.parametrize("kind", sorted(FILLERS))
def test_fillers_are_the_same_for_a_seed(kind: str) -> None:
    first, second = random.Random(3), random.Random(3)
    some = [FILLERS[kind](first) for _ in range(20)]
    assert some == [FILLERS[kind](second) for _ in range(20)]
    for filler in some:
        assert filler == " ".join(filler.split())
        assert "{" not in filler
    assert len(set(some)) > 2


def test_persons_have_many_names() -> None:
    rng = random.Random(4)
    assert len({FILLERS["person"](rng) for _ in range(2000)}) > 1000


def test_who_is_a_woman() -> None:
    rng = random.Random(5)
    assert not set(GIRLS) & set(BOYS)
    assert {is_woman(FILLERS["woman"](rng)) for _ in range(300)} == {True, None}
    assert {is_woman(FILLERS["man"](rng)) for _ in range(300)} == {False, None}
