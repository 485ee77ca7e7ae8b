"""Classification by the likelihood of labels: no training, any labels, in any language.

    result = classify(llama, "The soup was cold.", ["positive", "negative"])
    result.label, result.score              # "negative", 0.71
    result.scores                           # {"positive": 0.29, "negative": 0.71}
    classify(llama, texts, ["积极", "消极"], examples=[("很好吃。", "积极"), ("太贵了。", "消极")])

A label's likelihood is the geometric mean of the probabilities of its tokens (`LabelPrompt` has
the prompt), so that labels of more tokens are at no disadvantage. Models prefer some labels
whatever the text: their likelihood is divided by that after texts that say nothing (contextual
calibration; Zhao et al., 2021, arXiv 2102.09690).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from llama.generation import Llama
from llama.tasks.label_prompts import LabelPrompt
from llama.tasks.task_requests import (
    Texts,
    as_texts,
    check_llama,
    mean,
    run_requests,
    scoring_request,
)

CONTENT_FREE = ("N/A", "[MASK]", "")  # those of the paper


@dataclass(frozen=True)
class Classification:
    """The label with the highest score; of equal ones the first.

    `scores` has all labels in the order of the call; their sum is 1.
    """

    label: str
    score: float
    scores: dict[str, float]

    @classmethod
    def of_logits(cls, labels: Sequence[str], logits: Sequence[float]) -> "Classification":
        """By the softmax of a number for each label."""
        shares = softmax(logits)
        best = shares.index(max(shares))
        return cls(labels[best], shares[best], dict(zip(labels, shares, strict=True)))


@overload
def classify(
    llama: Llama,
    text: str,
    labels: Iterable[str],
    examples: Iterable[tuple[str, str]] = (),
    *,
    instruction: str | None = None,
    chat: bool = True,
    calibrate: bool = True,
    normalize: bool = True,
) -> Classification: ...
@overload
def classify(
    llama: Llama,
    text: Texts,
    labels: Iterable[str],
    examples: Iterable[tuple[str, str]] = (),
    *,
    instruction: str | None = None,
    chat: bool = True,
    calibrate: bool = True,
    normalize: bool = True,
) -> list[Classification]: ...
def classify(
    llama: Llama,
    text: str | Iterable[str],
    labels: Iterable[str],
    examples: Iterable[tuple[str, str]] = (),
    *,
    instruction: str | None = None,
    chat: bool = True,
    calibrate: bool = True,
    normalize: bool = True,
) -> Classification | list[Classification]:
    """Which of the labels fits a text, or each of several.

    `examples` are pairs of a text and its label, shown before the text (few-shot). `instruction`
    stands before each text; by default it lists the labels. `chat=False` is for base models, which
    have no chat format. Without `calibrate` scores are the likelihoods' shares as they are, without
    `normalize` those of whole labels. A score does not depend on the other texts.

    Raises InputError or InputTypeError as `LabelPrompt` does and for blank texts, and
    ContextLengthError, with both numbers, for a text that does not fit.
    """
    check_llama(llama)
    texts, is_several = as_texts("text", text)
    prompt = LabelPrompt(llama.formatter, labels, examples, instruction, chat)
    inputs = [*texts, *(CONTENT_FREE if calibrate else ())]
    # Label by label: the second one finds the prompts' full chunks in the prefix store.
    requests = [
        [scoring_request(*prompt.encode(each, label)) for each in inputs] for label in prompt.labels
    ]
    extra = "with the instruction, the examples and a label"
    for sequences in requests:
        for i, sequence in enumerate(sequences):
            name = f"text[{i}]" if is_several else "text"
            llama.engine.check(
                sequence, f"{name}, {extra}," if i < len(texts) else f"a text {extra}"
            )
    run_requests(llama, [s for sequences in requests for s in sequences], "Classifying")
    combine = mean if normalize else math.fsum
    logits = [[combine(s.prompt_logprobs) for s in each] for each in zip(*requests, strict=True)]
    if calibrate:
        biases = _log_mean_shares(logits[len(texts) :])
        logits = [[x - b for x, b in zip(row, biases, strict=True)] for row in logits]
    results = [Classification.of_logits(prompt.labels, row) for row in logits[: len(texts)]]
    return results if is_several else results[0]


def softmax(logits: Sequence[float]) -> list[float]:
    """Numbers whose sum is 1, and whose logs differ as the logits do."""
    shares = [math.exp(logit - max(logits)) for logit in logits]
    return [share / math.fsum(shares) for share in shares]


def _log_mean_shares(rows: Sequence[Sequence[float]]) -> list[float]:
    """The log of the mean of the rows' softmax, also where a share is too small for a float."""
    totals = [_log_sum(row) for row in rows]
    columns = zip(*([x - t for x in row] for row, t in zip(rows, totals, strict=True)), strict=True)
    return [_log_sum(column) - math.log(len(rows)) for column in columns]


def _log_sum(logs: Sequence[float]) -> float:
    return max(logs) + math.log(math.fsum(math.exp(x - max(logs)) for x in logs))
