"""Logistic regression on embeddings: its minimum, its files, the model it belongs to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tasks.conftest import write_model

from llama import InputError, Llama, Tokenizer
from llama.errors import MissingFileError
from llama.tasks import ClassifierHead

EXAMPLES = [
    *[(f"hello the world {i}", "积极") for i in range(8)],
    *[(f"user assistant {i}", "消极") for i in range(8)],
    *[(f"12 12 12 {i}", "一般") for i in range(8)],
]


@pytest.fixture(scope="module")
def head(llama: Llama) -> ClassifierHead:
    return ClassifierHead.train(llama, EXAMPLES)


def test_it_tells_apart_what_it_was_trained_on(llama: Llama, head: ClassifierHead) -> None:
    assert head.labels == ["积极", "消极", "一般"]
    results = head.classify(llama, [text for text, _ in EXAMPLES])
    assert [result.label for result in results] == [label for _, label in EXAMPLES]
    assert all(sum(result.scores.values()) == pytest.approx(1) for result in results)
    assert head.classify(llama, "hello the world 99").label == "积极"


def test_its_weights_are_the_minimum_of_the_loss(llama: Llama) -> None:
    """At the minimum, the gradient vanishes, in the units in which each dimension varies by 1."""
    head = ClassifierHead.train(llama, EXAMPLES, l2=2.0)
    states = llama.embed([text for text, _ in EXAMPLES]).double()
    center, scale = states.mean(0), states.std(0, unbiased=False)
    scaled = (states - center) / scale
    weight = (head.weight * scale).requires_grad_()
    bias = (head.bias + head.weight @ center).requires_grad_()
    targets = torch.tensor([head.labels.index(label) for _, label in EXAMPLES])
    loss = F.cross_entropy(scaled @ weight.T + bias, targets, reduction="sum")
    (loss + weight.square().sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad is not None
    assert bias.grad.abs().max() < 1e-4


def test_a_stronger_penalty_gives_smaller_weights_and_the_same_examples_the_same(
    llama: Llama, head: ClassifierHead
) -> None:
    again = ClassifierHead.train(llama, EXAMPLES)
    assert torch.equal(again.weight, head.weight)
    assert torch.equal(again.bias, head.bias)
    strong = ClassifierHead.train(llama, EXAMPLES, l2=100.0)
    assert strong.weight.norm() < head.weight.norm() / 2


def test_a_score_does_not_depend_on_the_other_texts(llama: Llama, head: ClassifierHead) -> None:
    texts = ["the world", "12 hello", "user the user"]
    together = head.classify(llama, texts)
    for text, result in zip(texts, together, strict=True):
        assert head.classify(llama, text) == result
    assert head.classify(llama, iter(texts)) == together


@pytest.mark.parametrize("echo", [True, False])
def test_a_file_gives_the_same_head(llama: Llama, echo: bool, tmp_path: Path) -> None:
    head = ClassifierHead.train(llama, EXAMPLES, echo=echo)
    head.save(tmp_path / "head.json")
    read = ClassifierHead.open(tmp_path / "head.json")
    assert read.echo == echo
    assert torch.equal(read.weight, head.weight)
    texts = ["the world", "12 hello"]
    assert read.classify(llama, texts) == head.classify(llama, texts)
    assert json.loads((tmp_path / "head.json").read_text())["model"] == llama.fingerprint


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(
    folder: Path, head: ClassifierHead, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = Llama.build(write_model(tmp_path / "other", tokenizer, seed=1), device="cpu")
    with pytest.raises(InputError, match="was trained on another model"):
        head.classify(other, "hello")
    (tmp_path / "copy").symlink_to(folder)
    copy = Llama.build(tmp_path / "copy", device="cpu", dtype="bfloat16")
    assert head.classify(copy, "hello the world 3").label == "积极"


def test_a_model_that_build_did_not_open_has_no_fingerprint(llama: Llama) -> None:
    bare = Llama(llama.model, llama.tokenizer)
    with pytest.raises(InputError, match="has a fingerprint"):
        ClassifierHead.train(bare, EXAMPLES)
    assert llama.fingerprint == llama.fingerprint


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "labels is empty"),
        (EXAMPLES[:8], {}, "labels is only '积极'"),
        ([*EXAMPLES, ("", "积极")], {}, r"examples\[24\], its text, is empty"),
        ([*EXAMPLES, ("b" * 2000, "积极")], {}, r"texts\[24\], read twice .* 1024"),
        (EXAMPLES, {"l2": 0}, "l2 must be greater than 0"),
        (EXAMPLES, {"l2": float("nan")}, "l2 must be greater than 0"),
    ],
)
def test_wrong_examples(llama: Llama, examples: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassifierHead.train(llama, examples, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "is no classifier head"),
        ("{", "is no classifier head"),
        ("[]", "its format is None"),
        ({"format": "llama classifier head, version 2"}, "version 2', not 'llama classifier"),
        ({"weight": [[1.0], [2.0]]}, "is damaged"),
        ({"weight": "x"}, "is damaged"),
        ({"bias": [1.0, float("nan"), 0.0]}, "numbers that are not finite"),
        ({"labels": ["a", "a", "b"]}, "labels has 'a' twice"),
        ({"echo": 1}, "echo true or false"),
    ],
)
def test_damaged_files(head: ClassifierHead, change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "head.json"
    head.save(path)
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    with pytest.raises(InputError, match=message) as caught:
        ClassifierHead.open(path)
    assert str(path) in str(caught.value)


def test_a_head_of_another_width_is_refused(llama: Llama, head: ClassifierHead) -> None:
    narrow = ClassifierHead(head.labels, head.weight[:, :5], head.bias, head.model, head.echo)
    with pytest.raises(InputError, match="5 dimensions, and the model's embeddings 32"):
        narrow.classify(llama, "hello")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is not there; `llama tasks train` makes one"):
        ClassifierHead.open(tmp_path / "head.json")
