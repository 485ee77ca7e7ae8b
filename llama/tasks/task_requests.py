"""What the tasks share: their texts, and requests that run in one call of the engine."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from llama import console
from llama.engine.request import FinishReason, Sequence
from llama.errors import InputError, InputTypeError
from llama.generation import Llama

Texts = list[str] | tuple[str, ...]  # several: a plain Iterable[str] would also be one string


def as_texts(name: str, value: Any) -> tuple[list[str], bool]:
    """The texts of an argument, and whether it is several: one string is one text.

    Raises InputError or InputTypeError, naming the text, for none, a blank one and no string.
    """
    is_several = not isinstance(value, str)
    if not isinstance(value, Iterable):
        raise InputTypeError(f"{name} must be a string or a list of strings, got {value!r:.60}")
    texts: list[Any] = list(value) if is_several else [value]
    if not texts:
        raise InputError(f"{name} is an empty list: give at least one text")
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]" if is_several else name, text)
    return texts, is_several


def check_text(name: str, text: Any) -> None:
    """Raises InputTypeError for what is no string, InputError for a blank one."""
    if not isinstance(text, str):
        raise InputTypeError(f"{name} must be a string, got {text!r:.60}")
    if not text.strip():
        raise InputError(f"{name} is empty; it needs at least one character besides white space")


def check_llama(llama: Any) -> None:
    """Raises InputTypeError for a first argument that is no `Llama`."""
    if not isinstance(llama, Llama):
        raise InputTypeError(
            f"the first argument is the model, Llama.build(...), and not {llama!r:.60}"
        )


def scoring_request(prompt: list[int], completion: list[int]) -> Sequence:
    """A request whose `prompt_logprobs` are those of the completion's tokens after the prompt."""
    return Sequence(prompt + completion, 0, score_prompt=True, score_from=len(prompt))


def run_requests(llama: Llama, sequences: list[Sequence], description: str) -> None:
    """Runs checked requests to their end, with a progress bar. Raises the error of one that fails.

    An exception, Ctrl-C too, cancels those that still run.
    """
    finished: set[Sequence] = set()
    with console.progress(len(sequences), description, unit=" requests") as bar:
        try:
            llama.engine.add(*sequences)
            for changed in llama.engine.run(sequences):
                for sequence in changed:
                    if sequence.error is not None:
                        raise sequence.error
                    if sequence.finish_reason is not None and sequence not in finished:
                        finished.add(sequence)
                        bar.update()
        finally:
            for sequence in sequences:
                llama.engine.cancel(sequence)


def mean(values: list[float]) -> float:
    """The mean, whatever the order of the values."""
    return math.fsum(values) / len(values)


class Generated(NamedTuple):
    """A generated text, its tokens and their log-probabilities, those of a stop token included."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason

    @property
    def score(self) -> float:
        """The geometric mean of the tokens' probabilities; 0 if there is no token."""
        return math.exp(mean(self.logprobs)) if self.logprobs else 0.0


def generate(
    llama: Llama, name: str, prompts: list[list[int]], max_gen_len: int, stop: str | None
) -> list[Generated]:
    """The likeliest text after each prompt, token by token; `name` is what errors call them."""
    requests = llama.requests(name, prompts, {"temperature": 0, "stop": stop}, max_gen_len)
    run_requests(llama, requests, "Generating")
    found = []
    for request in requests:
        tokens, logprobs, end = request.tokens, request.logprobs, request.stop_token
        if end is not None and end.id is not None:
            tokens, logprobs = [*tokens, end.id], [*logprobs, end.logprob]
        assert request.finish_reason is not None
        found.append(Generated(request.text.strip(), tokens, logprobs, request.finish_reason))
    return found
