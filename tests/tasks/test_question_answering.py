"""Answers from a context: the likeliest tokens, their probabilities, what the context adds."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llama import InputError, Llama
from llama.errors import ContextLengthError
from llama.tasks import answer

TINY = Path(__file__).parents[2] / "params" / "tiny"
CONTEXT = "Mia lives in Oslo. Tom lives in Lima."
QUESTIONS = ["Where does Tom live?", "Where does Mia live?", "Where does Zed live?"]


@pytest.fixture(scope="module")
def tiny() -> Llama:
    return Llama.build(TINY, max_batch_size=3, device="cpu", dtype="float32")


def test_the_bundled_model_answers_from_the_context(tiny: Llama) -> None:
    tom, mia, zed = answer(tiny, QUESTIONS, CONTEXT)
    assert (tom.text, mia.text) == ("Tom lives in Lima.", "Mia lives in Oslo.")
    assert zed.text == "I don't know."
    assert {each.finish_reason for each in (tom, mia, zed)} == {"stop"}
    assert all(each.score > 0.9 for each in (tom, mia, zed))
    assert tom.support is not None
    assert mia.support is not None
    assert zed.support is not None
    assert min(tom.support, mia.support) > 1 > abs(zed.support)  # not from the context


def test_score_and_support_follow_from_the_log_probabilities(tiny: Llama) -> None:
    found = answer(tiny, QUESTIONS[0], CONTEXT)

    def logprobs(content: str) -> list[float]:
        dialog: Any = [{"role": "user", "content": content}]
        prompt = tiny.formatter.encode_dialog_prompt(dialog)
        end = tiny.tokenizer.special_tokens["<|eot_id|>"]
        ids = [*tiny.tokenizer.encode(found.text), end]
        with torch.no_grad():
            rows = tiny.model(torch.tensor([prompt + ids]))[0].log_softmax(-1)
        return [rows[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    likelihood = mean(logprobs(f"{CONTEXT}\n{QUESTIONS[0]}"))
    assert found.score == pytest.approx(math.exp(likelihood), rel=1e-4)
    assert found.support == pytest.approx(likelihood - mean(logprobs(QUESTIONS[0])), abs=1e-3)


def test_an_answer_does_not_depend_on_the_other_questions(tiny: Llama) -> None:
    contexts = [CONTEXT, "Mia lives in Rome.", "Zed lives in Kyoto."]
    together = answer(tiny, QUESTIONS, contexts)
    for question, context, found in zip(QUESTIONS, contexts, together, strict=True):
        assert answer(tiny, question, context) == found
    assert together[1].text == "Mia lives in Rome."
    assert answer(tiny, QUESTIONS[:1], contexts[:1]) == together[:1]


def test_without_a_context_nothing_supports_an_answer(tiny: Llama) -> None:
    found = answer(tiny, "Where does Tom live?")
    assert found.support is None
    assert 0 < found.score <= 1
    assert answer(tiny, ["Where does Tom live?"]) == [found]


@pytest.mark.parametrize("kind", ["llama", "llama2"])
@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_that_is_cut_off_says_so(
    kind: str, chat: bool, request: pytest.FixtureRequest
) -> None:
    llama = request.getfixturevalue(kind)
    found = answer(llama, ["the user?", "hello"], "the world", max_gen_len=5, chat=chat)
    assert all(each.finish_reason in ("length", "stop") for each in found)
    assert all("\n" not in each.text for each in found if not chat)
    assert "length" in {each.finish_reason for each in found}


def test_a_base_model_ends_its_answer_at_the_end_of_the_line(chain: Any, tokenizer: Any) -> None:
    ids = [*tokenizer.encode(":", bos=False), *tokenizer.encode(" the world\n")]
    llama = chain([*ids, ids[-1]], max_seq_len=256)
    found = answer(llama, "hello?", "user", chat=False)
    assert (found.text, found.finish_reason) == ("the world", "stop")
    assert found.score > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("",), ValueError, "question is empty"),
        (([],), ValueError, "question is an empty list"),
        ((["a", 3],), TypeError, r"question\[1\] must be a string, got 3"),
        (("a", ""), ValueError, "context is empty"),
        (("a", ["b"]), ValueError, "context is a list of 1, and question one text"),
        ((["a", "b"], ["c"]), ValueError, "context is a list of 1, and question of 2"),
        (("a", "b" * 1100), ContextLengthError, "question, with its context, has 1.* is 1024"),
        ((["a", "b" * 1100],), ContextLengthError, r"question\[1\] has 1\d{3} tokens, .* is 1024"),
    ],
)
def test_wrong_input(
    llama: Llama, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        answer(llama, *arguments)
    assert isinstance(caught.value, InputError)
    assert llama.engine.idle
