"""The sentences that classifiers are compared on."""

import json
from pathlib import Path

import pytest

from examples import mood_data


def test_words_of_one_half_are_in_no_sentence_of_the_other() -> None:
    train, test, new_words = mood_data.labelled_sentences()
    assert [len(part) for part in (train, test, new_words)] == [400, 200, 200]
    texts = [example.text for part in (train, test, new_words) for example in part]
    assert len(set(texts)) == len(texts)
    words = {word for _, good, bad in mood_data.QUALITIES for word in (*good, *bad)}

    def used(part: list) -> set[str]:
        return {w for example in part for w in example.text.rstrip(".").split() if w in words}

    assert used(test) <= used(train)
    assert not used(train) & used(new_words)
    assert len(used(train)) == len(used(new_words)) == len(words) // 2


def test_half_of_the_sentences_are_of_each_label_and_not_turns_one_around() -> None:
    train, *_ = mood_data.labelled_sentences(language="chinese")
    assert sum(example.label == "积极" for example in train) == 200
    negated = [example for example in train if " not " in example.text]
    assert 50 < len(negated) < 110
    good = {word for _, words, _ in mood_data.QUALITIES for word in words}
    for text, label in train:
        if words := [word for word in text.rstrip(".").split() if word in good]:
            assert label == ("消极" if " not " in text else "积极"), words


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    mood_data.main(str(tmp_path / "a"), number=20)
    mood_data.main(str(tmp_path / "b"), number=20)
    mood_data.main(str(tmp_path / "c"), number=20, seed=2)
    names = ["few.jsonl", "new_words.jsonl", "test.jsonl", "train.jsonl"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
    few = [json.loads(line) for line in (tmp_path / "a" / "few.jsonl").read_text().splitlines()]
    assert [each["label"] for each in few] == ["positive", "negative"] * 2


@pytest.mark.parametrize("language", mood_data.LABELS)
def test_labels_are_of_the_language(language: str) -> None:
    labels = {example.label for example in mood_data.labelled_sentences(language=language)[0]}
    assert labels == set(mood_data.LABELS[language])
