"""Beam search against the search of all answers."""

import itertools

import pytest
import torch
from fixtures import tiny_args

from llama import Engine, InputError, Llama, Tokenizer, Transformer
from llama.engine.beam_search import beam_search


class FewWords:
    """A tokenizer of five tokens, of which the last ends an answer."""

    n_words, stop_tokens = 5, {4}


def exhaustive(model: Transformer, prompt: list[int], size: int, penalty: float) -> list[tuple]:
    """All answers of at most `size` tokens with their scores, best first."""
    found = []
    for length in range(1, size + 1):
        for answer in itertools.product(range(5), repeat=length):
            ends = answer[-1] == 4
            if 4 in answer[:-1] or (length < size and not ends):
                continue
            with torch.no_grad():
                logprobs = model(torch.tensor([[*prompt, *answer]]))[0].double().log_softmax(-1)
            start = len(prompt) - 1
            total = sum(logprobs[start + i, token].item() for i, token in enumerate(answer))
            found.append((total / length**penalty, list(answer[: length - ends])))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_best_answers_of_all(seed: int, penalty: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(tiny_args(vocab_size=5, max_seq_len=16))
    for weight in model.parameters():
        weight.data *= 6
    engine = Engine(model, FewWords(), 1, 16, kv_memory=10**8)  # type: ignore[arg-type]
    found = beam_search(engine, [1, 2], 256, 4, penalty, 4)
    right = exhaustive(model, [1, 2], 4, penalty)[:4]
    assert [h.tokens for h in found] == [tokens for _, tokens in right]
    assert [h.score for h in found] == pytest.approx([score for score, _ in right], abs=1e-4)
    assert engine.memory.used == 0


def test_one_beam_is_greedy_and_more_are_no_worse(llama: Llama) -> None:
    greedy = llama.generate([[5, 6, 7]], 8, temperature=0, logprobs=True)
    (one,) = llama.beam_search([5, 6, 7], beams=1, length_penalty=0, max_gen_len=8)
    assert one.tokens == greedy[0][0]
    (best,) = llama.beam_search([5, 6, 7], beams=6, length_penalty=0, max_gen_len=8)
    assert best.logprob >= one.logprob
    assert llama.beam_search("hello", beams=2)[0].tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be a whole number of 1 or more, got 0"),
        ({"n_best": 5}, "n_best=5 must be at most beams=4"),
        ({"max_gen_len": True}, "max_gen_len must be"),
    ],
)
def test_wrong_settings(llama: Llama, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        llama.beam_search([1, 2], **options)


def test_more_beams_than_memory_holds(llama: Llama, tokenizer: Tokenizer) -> None:
    bytes_ = llama.engine.memory.position_bytes
    engine = Engine(llama.model, tokenizer, 1, 64, kv_memory=128 * bytes_)
    with pytest.raises(InputError, match="3 beams of 10 positions do not fit into kv_memory"):
        beam_search(engine, [1, 2], 3, max_gen_len=8)
    assert engine.memory.used == 0
