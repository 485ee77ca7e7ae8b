from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny_args
from small_engines import engine_of, finish

from llama import Engine, InputError, Llama, SamplingParams, Sequence, Tokenizer, Transformer


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 20, (count,), generator=generator).tolist()
    return [torch.randint(0, 500, (size,), generator=generator).tolist() for size in sizes]


def request(prompt: list[int], size: int, seed: int = 0, temperature: float = 1.0) -> Sequence:
    return Sequence(prompt, size, SamplingParams(temperature=temperature, top_p=1.0, seed=seed))


def alone(llama: Llama, sequence: Sequence) -> Sequence:
    engine = engine_of(llama, rows=1)
    copy = engine.add(Sequence(sequence.prompt, sequence.max_gen_len, sequence.params))
    finish(engine)
    return copy


def assert_same(ours: Sequence, expected: Sequence) -> None:
    assert ours.tokens == expected.tokens
    assert ours.logprobs == expected.logprobs
    assert ours.finish_reason == expected.finish_reason
    assert ours.text == expected.text


def test_sequences_that_join_and_leave_get_what_they_get_alone(llama: Llama) -> None:
    engine = engine_of(llama)
    sequences = [
        request(prompt, size, seed, temperature)
        for seed, (prompt, size, temperature) in enumerate(
            zip(prompts(9), (30, 1, 7, 44, 3, 12, 25, 2, 9), (0.0, 1.0, 2.0) * 3, strict=True)
        )
    ]
    for i, sequence in enumerate(sequences):  # each joins while those before it decode
        engine.add(sequence)
        engine.step()
        if i % 2:
            engine.step()
    finish(engine)
    for sequence in sequences:
        assert_same(sequence, alone(llama, sequence))
    assert len({len(sequence.tokens) for sequence in sequences}) > 3


def test_more_requests_than_rows_wait_in_their_order(llama: Llama) -> None:
    engine = engine_of(llama, rows=2)
    sequences = [engine.add(request(prompt, 4, temperature=0.0)) for prompt in prompts(5)]
    begun: list[Sequence] = []
    while not engine.idle:
        engine.step()
        assert len(engine.running) <= 2
        begun += [s for s in sequences if (s.tokens or s.finish_reason) and s not in begun]
    assert begun == sequences
    assert all(sequence.finish_reason for sequence in sequences)


def test_a_prompt_runs_in_chunks_on_a_grid_between_the_steps_of_others(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    hidden = llama.model.hidden

    def record(
        tokens: torch.Tensor, start_pos: int | torch.Tensor, *args: object, **kw: object
    ) -> torch.Tensor:
        starts = start_pos.tolist() if isinstance(start_pos, torch.Tensor) else [start_pos]
        shapes.extend((tokens.shape[1], start) for start in starts)  # a row each
        return hidden(tokens, start_pos, *args, **kw)

    monkeypatch.setattr(llama.model, "hidden", record)
    engine = engine_of(llama, chunk=16)
    plain = SamplingParams(temperature=0, logit_bias={7: 1e4})
    engine.add(Sequence([5] * 7, 6, plain, speculate=False))
    engine.step()
    engine.add(Sequence([6] * 35, 3, plain, speculate=False))
    engine.add(Sequence([8] * 20, 3, plain, speculate=False))
    for _ in range(6):
        engine.step()
    steps = [(1, 7), (16, 0), (1, 8), (16, 0), (1, 9), (16, 16), (1, 10), (4, 16), (1, 11), (1, 20)]
    assert shapes == [(7, 0), *steps, (3, 32), *shapes[len(steps) + 2 :]]


def test_beside_a_stream_a_prompt_runs_one_layer_between_two_tokens(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, range | None]] = []
    hidden = llama.model.hidden

    def record(
        tokens: torch.Tensor, *args: object, layers: range | None = None, **kw: object
    ) -> torch.Tensor:
        calls.append((tokens.shape[1], layers))
        return hidden(tokens, *args, layers=layers, **kw)

    monkeypatch.setattr(llama.model, "hidden", record)
    engine = engine_of(llama, chunk=64)
    plain = SamplingParams(temperature=0, logit_bias={7: 1e4})
    stream = engine.add(Sequence([5] * 7, 30, plain, speculate=False))
    engine.step()
    late = engine.add(request([6, 9] * 20, 3, seed=4))
    dropped = request([8, 3] * 20, 3, seed=5)
    calls.clear()
    for _ in range(llama.model.n_layers):
        engine.step()
    layers = [(40, range(i, i + 1)) for i in range(llama.model.n_layers)]
    assert calls == [call for each in layers for call in ((1, None), each)]
    engine.add(dropped)
    engine.step()
    engine.cancel(dropped)  # in the middle of its prompt
    again = engine.add(request([8, 3] * 20, 3, seed=5))
    finish(engine)
    for sequence in (stream, late, again):
        assert_same(sequence, alone(llama, sequence))


def test_cancelled_sequences_keep_what_they_have_and_others_go_on(llama: Llama) -> None:
    engine = engine_of(llama, rows=2)
    first, second, third = (
        engine.add(request(prompt, 20, seed=i)) for i, prompt in enumerate(prompts(3))
    )
    engine.step()
    engine.step()
    engine.cancel(first)  # runs, in a row before the second's
    engine.cancel(third)  # waits
    assert (first.finish_reason, len(first.tokens)) == ("cancelled", 2)
    assert (third.finish_reason, third.tokens) == ("cancelled", [])
    finish(engine)
    assert_same(second, alone(llama, second))
    engine.cancel(second)  # has ended: nothing happens
    assert second.finish_reason in ("stop", "length")


def test_the_length_limit_is_exact(llama: Llama) -> None:
    engine = engine_of(llama)
    no_stop = {token: -torch.inf for token in llama.tokenizer.stop_tokens}
    params = SamplingParams(temperature=0, logit_bias=no_stop)
    for prompt_size, asked, given in ((1, 1, 1), (10, 5, 5), (60, 9, 4), (63, None, 1), (64, 3, 0)):
        sequence = engine.add(Sequence([9] * prompt_size, asked, params))
        finish(engine)
        assert len(sequence.tokens) == given
        assert sequence.finish_reason == "length"


@pytest.mark.parametrize(
    ("request_of", "error", "message"),
    [
        (lambda: Sequence([]), ValueError, "the prompt is empty"),
        (lambda: Sequence([1] * 65), ValueError, r"prompt has 65 tokens, but the context is 64"),
        (lambda: Sequence([1, 544]), ValueError, "holds 544, no token id of 0 to 543"),
        (lambda: Sequence([1, -1]), ValueError, "holds -1"),
        (lambda: Sequence([1, True]), TypeError, "must hold token ids, got True at index 1"),
        (lambda: Sequence(torch.tensor([0.5])), TypeError, "must hold token ids, got 0.5"),
        (lambda: Sequence("hello"), TypeError, "must be a list of token ids, got 'hello'"),
        (lambda: Sequence(7), TypeError, "must be a list of token ids, got 7"),
        (lambda: Sequence([1], -1), ValueError, "max_gen_len must be at least 0, got -1"),
        (lambda: Sequence([1], True), TypeError, "max_gen_len must be an integer, got True"),
        (lambda: Sequence([1], 2.0), TypeError, "max_gen_len must be an integer, got 2.0"),
        (lambda: Sequence([1], stop="girl"), TypeError, r"write \('girl',\)"),
        (lambda: Sequence([1], stop=5), TypeError, "stop must be a tuple of strings, got 5"),
        (lambda: Sequence([1], stop=("a", 5)), TypeError, "stop must hold strings, got 5"),
        (lambda: Sequence([1], stop=("",)), ValueError, "stop strings must not be empty"),
        (lambda: Sequence([1], params=SamplingParams(logit_bias={544: 1.0})), ValueError, "544"),
    ],
)
def test_a_wrong_request_is_refused_at_once(
    llama: Llama, request_of: Callable[[], Sequence], error: type[Exception], message: str
) -> None:
    engine = engine_of(llama)
    with pytest.raises(error, match=message):
        engine.add(request_of())
    assert engine.idle
    assert engine.step() == []


def test_ids_beyond_the_tokenizers_are_refused_where_the_embedding_is_padded(
    tokenizer: Tokenizer,
) -> None:
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words + 8))
    engine = Engine(model, tokenizer, 1, 32)
    for sequence in (
        Sequence([tokenizer.n_words]),
        Sequence([1], params=SamplingParams(logit_bias={tokenizer.n_words: 1.0})),
    ):
        with pytest.raises(InputError, match=str(tokenizer.n_words)):
            engine.add(sequence)


@pytest.mark.parametrize("ids", [(5, 6), iter([5, 6]), np.array([5, 6]), torch.tensor([5, 6])])
def test_prompts_are_any_integers(ids: Iterable[int]) -> None:
    sequence = Sequence(ids, max_gen_len=np.int64(3), stop=None)
    assert sequence.prompt == [5, 6]
    assert {type(token) for token in sequence.prompt} == {int}
    assert (sequence.max_gen_len, sequence.stop) == (3, ())
    assert Sequence([np.int64(5), torch.tensor(6)]).prompt == [5, 6]


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ((0, 64), ValueError, "max_batch_size must be at least 1, got 0"),
        ((1, "64"), TypeError, r"max_seq_len must be an integer, got '64' \(str\)"),
        ((True, 64), TypeError, "max_batch_size must be an integer, got True"),
    ],
)
def test_wrong_limits(
    llama: Llama, checkpoint: Path, limits: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Engine(llama.model, llama.tokenizer, *limits)
    with pytest.raises(error, match=message):
        Llama.build(checkpoint, max_batch_size=limits[0], max_seq_len=limits[1])


def test_prompts_with_one_seed_draw_different_numbers(llama: Llama) -> None:
    llama.model.output.weight.data.zero_()  # all tokens are equally likely after any prompt
    engine = engine_of(llama)
    params = SamplingParams(temperature=1, top_p=1, seed=3)
    requests = [([i], 0) for i in range(24)] + [([0], 1), ([0], 0)]
    sequences = [engine.add(Sequence(p, 6, params, sample_index=i)) for p, i in requests]
    finish(engine)
    answers = [tuple(sequence.tokens) for sequence in sequences]
    assert len(set(answers)) == 25
    assert answers[-1] == answers[0]
