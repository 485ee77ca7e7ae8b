"""Rerankers: scores of passages for one question, by the model that is to answer it.

    scores = PASSAGE_SCORES["likelihood"](reader, "Who lives in Lima?", passages)

`likelihood` is how likely the model finds the question after the passage (arXiv 2310.13243),
`attention` how much the question's tokens look at the passage's (arXiv 2410.02642), `yes_no` how
likely the answer is yes when the model is asked whether the passage holds the answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llama.engine.engine import Engine
from llama.engine.request import Sequence as Request
from llama.engine.reranking import query_likelihood, query_likelihood_sequences
from llama.generation import Llama
from llama.retrieval.attention_scores import attention_scores

Rerank = Literal["likelihood", "attention", "yes_no"]

_YES_NO = (
    "Passage: {passage}\n\nQuestion: {question}\n\n"
    "Does the passage hold the answer to the question? Answer Yes or No."
)


@dataclass(frozen=True)
class Reader:
    """A model, and what runs requests on it to their ends: its engine, or a server's."""

    llama: Llama
    run: Callable[[list[Request]], None]

    @staticmethod
    def of(llama: Llama) -> "Reader":
        """Runs requests by the model's own engine, beside those of other threads."""
        return Reader(llama, lambda requests: run_requests(llama.engine, requests))

    def checked(self, requests: list[Request], name: str) -> list[Request]:
        """The requests; ContextLengthError or InputError, naming them, for what can't run."""
        for i, request in enumerate(requests):
            self.llama.engine.check(request, f"{name}[{i}]")
        return requests


def run_requests(engine: Engine, requests: list[Request]) -> None:
    """Runs requests to their ends. Raises the error of one that fails."""
    try:
        engine.add(*requests)
        for _ in engine.run(requests):
            if failed := next((r.error for r in requests if r.error is not None), None):
                raise failed
    finally:
        for request in requests:
            engine.cancel(request)


def _likelihood(reader: Reader, question: str, passages: Sequence[str]) -> list[float]:
    tokenizer = reader.llama.tokenizer
    requests = query_likelihood_sequences(tokenizer, question, passages)
    reader.run(reader.checked(requests, "passages with the question"))
    return [query_likelihood(request) for request in requests]


def _attention(reader: Reader, question: str, passages: Sequence[str]) -> list[float]:
    llama = reader.llama
    size = llama.engine.max_seq_len
    with llama.engine.paused():
        return attention_scores(llama.model, llama.tokenizer, question, passages, size)


def _yes_no(reader: Reader, question: str, passages: Sequence[str]) -> list[float]:
    llama = reader.llama
    answers = [llama.tokenizer.encode(text) for text in ("Yes", "No")]
    requests = []
    for passage in passages:
        text = _YES_NO.format(passage=passage, question=question)
        prompt = llama.formatter.encode_dialog_prompt([{"role": "user", "content": text}])
        for answer in answers:
            requests.append(Request(prompt + answer, 0, score_prompt=True, score_from=len(prompt)))
    reader.run(reader.checked(requests, "passages with the question"))
    logs = [math.fsum(request.prompt_logprobs) for request in requests]
    # The share of yes, of both; the difference is bounded so that exp is.
    pairs = zip(logs[::2], logs[1::2], strict=True)
    return [1 / (1 + math.exp(min(no - yes, 700.0))) for yes, no in pairs]


PASSAGE_SCORES: dict[Rerank, Callable[[Reader, str, Sequence[str]], list[float]]] = {
    "likelihood": _likelihood,
    "attention": _attention,
    "yes_no": _yes_no,
}
