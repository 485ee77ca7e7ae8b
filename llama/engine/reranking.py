"""Reranking by query likelihood: how likely a model finds the query after each document.

    sequences = query_likelihood_sequences(tokenizer, "Where does Tom live?", documents)
    ...                                    # run them, by an `Engine` or an `AsyncEngine`
    scores = [query_likelihood(sequence) for sequence in sequences]

A document is relevant if the query is likely to be asked about it (Ponte and Croft, 1998; for
language models as they are: Zhuang et al., 2023, arXiv 2310.13243). The document comes first, so
that its full chunks come from the prefix store when another query is scored.
"""

import math
from collections.abc import Iterable

from llama.engine.embedding import encode_after_space
from llama.engine.request import Sequence
from llama.errors import InputError, InputTypeError
from llama.tokenizer import Tokenizer

INSTRUCTION = "Please write a question that this passage answers."


def query_likelihood_sequences(
    tokenizer: Tokenizer,
    query: str,
    documents: Iterable[str],
    instruction: str = INSTRUCTION,
    *,
    adapter: str | None = None,
) -> list[Sequence]:
    """A request for each document, whose `prompt_logprobs` are those of the query's tokens.

    The `instruction` stands between the document and the query. Raises InputError or
    InputTypeError, naming the argument, for an empty query and what is no string.
    """
    named = {"query": query, "instruction": instruction}
    named |= {f"documents[{i}]": document for i, document in enumerate(documents)}
    for name, text in named.items():
        if not isinstance(text, str):
            raise InputTypeError(f"{name} must be a string, got {text!r:.60}")
    if not query:
        raise InputError("query is empty; it needs at least one character")
    question = encode_after_space(tokenizer, query)
    sequences = []
    for document in list(named.values())[2:]:
        before = tokenizer.encode(f"Passage: {document}\n{instruction}\nQuestion:", bos=True)
        sequence = Sequence(before + question, 0, score_prompt=True, adapter=adapter)
        sequence.score_from = len(before)
        sequences.append(sequence)
    return sequences


def query_likelihood(sequence: Sequence) -> float:
    """The geometric mean of the query's token probabilities, of a request that has run: 0 to 1."""
    return math.exp(math.fsum(sequence.prompt_logprobs) / len(sequence.prompt_logprobs))
