"""Labels by their likelihood: against the definition, in both kinds of tokenizers."""

import math
from typing import Any

import pytest
import torch
from fixtures import write_sentencepiece

from llama import ChatFormat, InputError, Llama, Tokenizer
from llama.errors import ContextLengthError
from llama.tasks import classify
from llama.tasks.classification import CONTENT_FREE, Classification
from llama.tasks.label_prompts import LabelPrompt, default_instruction

LABELS = ["good", "good enough", "bad"]
TEXTS = ["hello the world", "the user", "12 assist", "这家店很好吃。"]
EXAMPLES = [("the hello", "bad"), ("world", "good")]


def logprobs(llama: Llama, before: list[int], label: list[int]) -> list[float]:
    """The definition, without engine, chunks and cache."""
    with torch.no_grad():
        found = llama.model(torch.tensor([before + label]))[0].log_softmax(-1)
    start = len(before) - 1
    return [found[start + i, token].item() for i, token in enumerate(label)]


def shares(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["llama", "llama2"])
def test_scores_are_calibrated_likelihoods_of_the_labels(
    kind: str, chat: bool, calibrate: bool, normalize: bool, request: pytest.FixtureRequest
) -> None:
    llama = request.getfixturevalue(kind)
    options = {"chat": chat, "calibrate": calibrate, "normalize": normalize}
    found = classify(llama, TEXTS[:2], LABELS, EXAMPLES, **options)
    prompt = LabelPrompt(llama.formatter, LABELS, EXAMPLES, chat=chat)

    def likelihoods(text: str) -> list[float]:
        rows = [logprobs(llama, *prompt.encode(text, label)) for label in LABELS]
        return [sum(row) / (len(row) if normalize else 1) for row in rows]

    free = [shares(likelihoods(text)) for text in CONTENT_FREE]
    priors = [sum(column) / len(CONTENT_FREE) for column in zip(*free, strict=True)]
    for text, result in zip(TEXTS, found, strict=False):
        raw = shares(likelihoods(text))
        expected = [s / p for s, p in zip(raw, priors, strict=True)] if calibrate else raw
        expected = [each / sum(expected) for each in expected]
        assert list(result.scores) == LABELS
        assert list(result.scores.values()) == pytest.approx(expected, rel=1e-3)
        assert result.score == max(result.scores.values()) == result.scores[result.label]
        assert sum(result.scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["llama", "llama2"])
def test_a_text_that_says_nothing_gets_even_scores(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = request.getfixturevalue(kind)
    monkeypatch.setattr("llama.tasks.classification.CONTENT_FREE", ("N/A",))
    for labels in (LABELS, ["积极", "消极"], ["很积极", "很消极", "很好"]):
        result = classify(llama, "N/A", labels)
        assert list(result.scores.values()) == pytest.approx([1 / len(labels)] * len(labels))
        assert result.label == labels[0]


@pytest.mark.parametrize("chat", [True, False])
def test_a_score_does_not_depend_on_the_other_texts(llama: Llama, chat: bool) -> None:
    labels = ["积极", "消极", "很积极"]
    examples = [("很好吃。" * 12, "积极"), ("太贵了。" * 12, "消极")]  # several chunks long
    together = classify(llama, TEXTS, labels, examples, chat=chat)
    for text, result in zip(reversed(TEXTS), reversed(together), strict=True):
        assert classify(llama, text, labels, examples, chat=chat) == result
    assert classify(llama, iter(TEXTS), tuple(labels), examples, chat=chat) == together
    assert llama.engine.idle


@pytest.mark.parametrize("kind", ["llama", "llama2"])
@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_what_the_model_was_trained_to_see(
    kind: str, chat: bool, request: pytest.FixtureRequest
) -> None:
    llama = request.getfixturevalue(kind)
    labels = ["积极", "消极", "积"]
    prompt = LabelPrompt(llama.formatter, labels, [("好吃", "积极")], chat=chat)
    asked = default_instruction(labels)
    found = {label: prompt.encode("太贵了", label) for label in labels}
    before, label = found["消极"]
    tokenizer = llama.tokenizer
    if not chat:
        text = f"{asked}\n\nText: 好吃\nLabel: 积极\n\nText: 太贵了\nLabel:"
        assert before == tokenizer.encode(text, bos=True)
        space = " " * (not tokenizer.is_sentencepiece)  # which SentencePiece adds itself
        assert tokenizer.decode(label) == f"{space}消极\n"
    else:
        dialog: Any = [
            {"role": "user", "content": f"{asked}\n\n好吃"},
            {"role": "assistant", "content": "积极"},
            {"role": "user", "content": f"{asked}\n\n太贵了"},
        ]
        assert before == ChatFormat(tokenizer).encode_dialog_prompt(dialog)
        assert label[-1] in tokenizer.stop_tokens
        assert tokenizer.decode(label[:-1]).strip() == "消极"
    # No label is the beginning of another one.
    completions = [ids for _, ids in found.values()]
    assert all(a == b or a != b[: len(a)] for a in completions for b in completions)
    assert len({tuple(prompt) for prompt, _ in found.values()}) == 1


def test_the_instruction_lists_the_labels_in_their_language(llama: Llama) -> None:
    assert "good, good enough or bad" in default_instruction(LABELS)
    assert "积极、一般还是消极" in default_instruction(["积极", "一般", "消极"])
    assert default_instruction(["良い", "悪い"]).startswith("Which label")
    prompt = LabelPrompt(llama.formatter, LABELS, instruction="Hm?")
    assert "Hm?\n\nthe" in llama.tokenizer.decode(prompt.encode("the", "bad")[0])


def test_equal_scores_give_the_first_label_and_large_differences_no_error() -> None:
    assert Classification.of_logits(["b", "a"], [0.5, 0.5]) == Classification(
        "b", 0.5, {"b": 0.5, "a": 0.5}
    )
    assert Classification.of_logits(["b", "a"], [-5000.0, 0.0]).scores == {"b": 0.0, "a": 1.0}


def test_labels_of_very_different_likelihoods_are_calibrated_too(llama: Llama) -> None:
    """Their shares are too small for a float: e to the -745 is 0."""
    result = classify(llama, "N/A", ["a", "z" * 400], instruction="?", normalize=False)
    assert all(math.isfinite(score) for score in result.scores.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", []), ValueError, "labels is empty: give at least two"),
        (("a", ["x"]), ValueError, "labels is only 'x': give at least two"),
        (("a", "xy"), TypeError, "labels must be a list of strings, got 'xy'"),
        (("a", 5), TypeError, "labels must be a list of strings, got 5"),
        (("a", ["x", "y", "x "]), ValueError, "labels has 'x' twice"),
        (("a", ["x", " "]), ValueError, r"labels\[1\] is empty"),
        (("a", ["x", None]), TypeError, r"labels\[1\] must be a string, got None"),
        (("a", ["\ud800", "\udfff"]), ValueError, "have the same tokens"),
        ((" ", LABELS), ValueError, "text is empty; it needs at least one character"),
        ((["a", ""], LABELS), ValueError, r"text\[1\] is empty"),
        (([], LABELS), ValueError, "text is an empty list"),
        ((["a", 7], LABELS), TypeError, r"text\[1\] must be a string, got 7"),
        ((7, LABELS), TypeError, "text must be a string or a list of strings, got 7"),
        (("a", LABELS, [("b", "fine")]), ValueError, r"examples\[0\] has the label 'fine', which"),
        (("a", LABELS, [("b", "bad"), "xy"]), TypeError, r"examples\[1\] must be a pair"),
        (("a", LABELS, [("", "bad")]), ValueError, r"examples\[0\], its text, is empty"),
        (("a", LABELS, [("b", 3)]), TypeError, r"examples\[0\], its label, must be a string"),
        (("a", LABELS, "bad"), TypeError, "examples must be pairs"),
        (
            (["a", "b" * 1000], LABELS),
            ContextLengthError,
            r"text\[1\], with the instruction, the examples and a label, has \d{4} tokens, but the "
            r"context is 1024",
        ),
        (
            ("a", LABELS, [("b" * 1000, "bad")]),
            ContextLengthError,
            r"text, with the instruction, .* has \d{4} tokens, but the context is 1024",
        ),
    ],
)
def test_wrong_input(
    llama: Llama, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        classify(llama, *arguments)
    assert isinstance(caught.value, InputError)
    assert llama.engine.idle


def test_the_model_comes_first() -> None:
    with pytest.raises(TypeError, match="the first argument is the model"):
        classify("params/tiny", "a text", ["x", "y"])  # type: ignore[call-overload]


def test_a_label_that_the_tokenizer_drops(tmp_path: Any) -> None:
    rule = {"normalization_rule_name": "nmt_nfkc"}
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model", **rule))
    assert "\u200b".strip()
    with pytest.raises(InputError, match="has no tokens: the tokenizer drops it"):
        LabelPrompt(ChatFormat(tokenizer), ["good", "\u200b"])


def test_what_fails_ends_all_of_the_call(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = llama.model.hidden
    monkeypatch.setattr(llama.model, "hidden", lambda *a, **k: hidden(*a, **k) * float("nan"))
    with pytest.raises(FloatingPointError):
        classify(llama, TEXTS, LABELS)
    assert llama.engine.idle
