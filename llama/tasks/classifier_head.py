"""A classifier trained on labelled examples: logistic regression on a model's embeddings.

    head = ClassifierHead.train(llama, [("Great food.", "positive"), ("Too cold.", "negative")])
    head.classify(llama, "The soup was cold.").label
    head.save("mood.json")
    ClassifierHead.open("mood.json").classify(llama, texts)

The model stays as it is: it reads the examples, and what is trained is a number for each label
and dimension, in seconds. A head fits the model it was trained on and refuses others; the dtype and
the format of the weights may be others.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.errors import InputError, MissingFileError
from llama.generation import Llama
from llama.storage.files import atomic_write, expand, read_text
from llama.tasks.classification import Classification
from llama.tasks.label_prompts import checked_examples, checked_labels
from llama.tasks.task_requests import Texts, as_texts, check_llama

_FORMAT = "llama classifier head, version 1"


@dataclass(frozen=True, eq=False)
class ClassifierHead:
    """Scores are the softmax of `weight` (labels, dim) times the text's embedding, plus `bias`.

    `model` is the fingerprint of the model that it was trained on, `echo` how it makes embeddings
    (see `Llama.embed`). Both tensors are float64.
    """

    labels: list[str]
    weight: Tensor
    bias: Tensor
    model: str
    echo: bool

    @staticmethod
    def train(
        llama: Llama,
        examples: Iterable[tuple[str, str]],
        *,
        l2: float = 1.0,
        echo: bool = True,
    ) -> "ClassifierHead":
        """Trains a head on pairs of a text and its label; the same examples give the same head.

        The labels are those of the examples, in the order of their first. `l2` is how strongly
        large weights are penalized: more for few examples or wrong labels. Each dimension is
        scaled to a variance of 1 first. Without `echo` a text is read once instead of twice, in
        half the time, and labels are worse. Raises InputError for fewer than two labels, and as
        `Llama.embed` does.
        """
        check_llama(llama)
        if not 0 < l2 < float("inf"):
            raise InputError(f"l2 must be greater than 0 and finite, got {l2!r}")
        pairs = checked_examples(examples)
        labels = checked_labels(dict.fromkeys(pair.label for pair in pairs))
        fingerprint = llama.fingerprint
        states = llama.embed([pair.text for pair in pairs], echo=echo).double()
        targets = torch.tensor([labels.index(pair.label) for pair in pairs])
        center, scale = states.mean(0), states.std(0, unbiased=False).clamp(min=1e-8)
        weight, bias = _fit((states - center) / scale, targets, len(labels), l2)
        weight /= scale
        return ClassifierHead(labels, weight, bias - weight @ center, fingerprint, echo)

    @overload
    def classify(self, llama: Llama, text: str) -> Classification: ...
    @overload
    def classify(self, llama: Llama, text: Texts) -> list[Classification]: ...
    def classify(
        self, llama: Llama, text: str | Iterable[str]
    ) -> Classification | list[Classification]:
        """Which label fits a text, or each of several; a score does not depend on the others.

        Raises InputError for another model than the one that the head was trained on.
        """
        check_llama(llama)
        texts, is_several = as_texts("text", text)
        if llama.fingerprint != self.model:
            raise InputError(
                f"the head was trained on another model ({self.model[:12]}) than this one "
                f"({llama.fingerprint[:12]}): open that one, or train a head on this one"
            )
        dim = llama.model.params.dim
        if self.weight.shape[1] != dim:
            raise InputError(
                f"the head has {self.weight.shape[1]} dimensions, and the model's embeddings {dim}"
            )
        # One at a time: the product of several rounds otherwise than that of one.
        states = llama.embed(texts, echo=self.echo).double()
        logits = [(self.weight @ state + self.bias).tolist() for state in states]
        results = [Classification.of_logits(self.labels, row) for row in logits]
        return results if is_several else results[0]

    def save(self, path: str | Path) -> None:
        """Writes the head to a JSON file, atomically."""
        content = {
            "format": _FORMAT,
            "model": self.model,
            "echo": self.echo,
            "labels": self.labels,
            "bias": self.bias.tolist(),
            "weight": self.weight.tolist(),
        }
        with atomic_write(path) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")

    @staticmethod
    def open(path: str | Path) -> "ClassifierHead":
        """Reads a head. Raises MissingFileError or InputError, naming the file."""
        try:
            content = json.loads(read_text(expand(path)))
        except FileNotFoundError:
            raise MissingFileError(f"{path} is not there; `llama tasks train` makes one") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no classifier head: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise InputError(
                f"{path} is no classifier head of this version: its format is {found!r:.60}, not "
                f"{_FORMAT!r}"
            )
        try:
            return _head(content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error!r:.200}); train it again") from error


def _head(content: dict[str, Any]) -> ClassifierHead:
    weight = torch.tensor(content["weight"], dtype=torch.float64)
    bias = torch.tensor(content["bias"], dtype=torch.float64)
    labels, model, echo = checked_labels(content["labels"]), content["model"], content["echo"]
    if weight.ndim != 2 or len(weight) != len(labels) or bias.shape != (len(labels),):
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"{len(labels)} labels, and numbers of shapes {shapes}")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError("numbers that are not finite")
    if not isinstance(model, str) or not isinstance(echo, bool):
        raise TypeError("model should be a string, echo true or false")
    return ClassifierHead(labels, weight, bias, model, echo)


def _fit(states: Tensor, targets: Tensor, num_labels: int, l2: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: the sum of the losses plus l2 / 2 times weight squared.

    The loss is convex, so its minimum does not depend on where the search begins.
    """
    weight = states.new_zeros(num_labels, states.shape[1], requires_grad=True)
    bias = states.new_zeros(num_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(states @ weight.T + bias, targets, reduction="sum")
        value = (value + l2 / 2 * weight.square().sum()) / len(states)
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
