"""Words that stand for names, and words that are made of rare tokens."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.tiny_data import fillers
from examples.tiny_data.turns import Source
from llama import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(ROOT / "params" / "tiny" / "tokenizer.model")


def test_any_word_may_stand_at_the_end_of_a_name() -> None:
    assert fillers.with_end("by the window", "cloud") == "by the cloud"
    assert fillers.with_end("New York", "cloud") == "New Cloud"
    assert fillers.with_end("Mia", "cloud") == "Cloud"
    assert fillers.with_end("by the window", "Jackos") == "by the jackos"


@pytest.mark.parametrize("kind", fillers.FILLERS)
def test_a_share_of_names_ends_with_a_word_of_the_source(kind: str) -> None:
    source = Source(random.Random(1), ("lumbago", "frindle"), [], strange=0.5)
    picked = [source.pick(kind) for _ in range(300)]
    odd = sum(name.lower().rpartition(" ")[2] in source.words for name in picked)
    assert 110 < odd < 190 if kind in fillers.NAMES else odd == 0


def test_made_up_words_use_rare_tokens(tokenizer: Tokenizer) -> None:
    words = ["running", "jumping", "tables", "chairs", "sunshine", "raincoat", "butter", "flower"]
    held_out = ["ing", "tab"]

    def seen(words: list[str]) -> Counter[int]:
        return Counter(token for word in words for token in set(tokenizer.encode(f" {word}")))

    def made_up(held_out: list[str], times: int) -> list[str]:
        return fillers.made_up_words(random.Random(1), tokenizer, words, held_out, times)

    made = made_up(held_out, times=3)
    assert made == made_up(held_out, times=3)
    assert len({*made}) == len(made)
    assert all(re.fullmatch("[a-z]{2,12}", word) for word in made)
    assert not any(part in word for word in made for part in held_out)
    before, after = seen(words), seen(words + made)
    assert len(made) <= sum(max(0, 3 - times) for times in before.values())
    assert after.keys() == before.keys()
    spoiled = [token for token in before if re.search("ing|tab", tokenizer.decode([token]))]
    assert [token for token in after if after[token] < 3 and token not in spoiled] == []
    assert made_up(held_out, times=1) == []
    assert any("ing" in word for word in made_up([], times=3))
