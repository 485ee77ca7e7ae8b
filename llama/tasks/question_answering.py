"""Answers to questions, with how sure the model is and how much a context says for it.

answer(llama, "Where does Tom live?", "Mia lives in Oslo. Tom lives in Lima.")
# Answer(text="Tom lives in Lima.", score=0.97, support=2.1, finish_reason="stop")
answer(llama, questions)                # without a context: from what the model knows
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from llama.engine import FinishReason
from llama.engine.request import Sequence as Request
from llama.errors import InputError
from llama.generation import Llama
from llama.tasks.task_requests import (
    Generated,
    Texts,
    as_texts,
    check_llama,
    generate,
    mean,
    run_requests,
    scoring_request,
)
from llama.tokenizer import ChatFormat


@dataclass(frozen=True)
class Answer:
    """The likeliest answer, token by token (greedy search).

    `score` is the geometric mean of the probabilities of its tokens, and of the token that ends it,
    between 0 and 1. `support` is how much the context adds to their mean log-probability, in nats;
    None without a context. About 0 or less means that the answer does not come from it. An answer
    with the `finish_reason` "length" is cut off at `max_gen_len` tokens.
    """

    text: str
    score: float
    support: float | None
    finish_reason: FinishReason


@overload
def answer(
    llama: Llama,
    question: str,
    context: str | None = None,
    *,
    max_gen_len: int = 256,
    chat: bool = True,
) -> Answer: ...
@overload
def answer(
    llama: Llama,
    question: Texts,
    context: str | Sequence[str] | None = None,
    *,
    max_gen_len: int = 256,
    chat: bool = True,
) -> list[Answer]: ...
def answer(
    llama: Llama,
    question: str | Iterable[str],
    context: str | Sequence[str] | None = None,
    *,
    max_gen_len: int = 256,
    chat: bool = True,
) -> Answer | list[Answer]:
    """The answer to a question, or to each of several, from a context if there is one.

    Several questions have one context for all, or a list with one for each. `chat=False` is for
    base models: the answer is then a line. An answer does not depend on the other questions.

    Raises InputError or InputTypeError for blank texts and another number of contexts than of
    questions, and ContextLengthError, with both numbers, for what does not fit.
    """
    check_llama(llama)
    questions, is_several = as_texts("question", question)
    contexts = _contexts(context, len(questions), is_several)
    pairs = list(zip(questions, contexts, strict=True))
    prompts = [_prompt(llama.formatter, *pair, chat) for pair in pairs]
    for i, prompt in enumerate(prompts):
        name = f"question[{i}]" if is_several else "question"
        name += "" if contexts[i] is None else ", with its context,"
        llama.engine.check(Request(prompt), name)
    found = generate(llama, "question", prompts, max_gen_len, None if chat else "\n")
    support = _support(llama, questions, found, chat) if context is not None else None
    answers = [
        Answer(each.text, each.score, support[i] if support else None, each.finish_reason)
        for i, each in enumerate(found)
    ]
    return answers if is_several else answers[0]


def _contexts(context: Any, count: int, is_several: bool) -> list[str | None]:
    """The context of each of `count` questions."""
    if context is None:
        return [None] * count
    contexts, are_several = as_texts("context", context)
    if not are_several:
        return [*contexts] * count
    if not is_several or len(contexts) != count:
        raise InputError(
            f"context is a list of {len(contexts)}, and question "
            f"{f'of {count}' if is_several else 'one text'}: give one for all, or one for each"
        )
    return [*contexts]


def _prompt(formatter: ChatFormat, question: str, context: str | None, chat: bool) -> list[int]:
    if chat:
        content = question if context is None else f"{context}\n{question}"
        return formatter.encode_dialog_prompt([{"role": "user", "content": content}])
    passage = "" if context is None else f"Passage: {context}\n"
    return formatter.tokenizer.encode(f"{passage}Question: {question}\nAnswer:", bos=True)


def _support(
    llama: Llama, questions: list[str], found: list[Generated], chat: bool
) -> list[float | None]:
    """By how much each answer's mean log-probability falls without its context."""
    requests = {}
    for i, (question, each) in enumerate(zip(questions, found, strict=True)):
        if each.tokens:
            prompt = _prompt(llama.formatter, question, None, chat)
            requests[i] = scoring_request(prompt, each.tokens)
    run_requests(llama, list(requests.values()), "Scoring")
    return [
        mean(each.logprobs) - mean(requests[i].prompt_logprobs) if i in requests else None
        for i, each in enumerate(found)
    ]
