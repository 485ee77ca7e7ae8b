"""Embeddings and reranking: requests that read a prompt and generate nothing."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import run_ranks
from small_engines import engine_of, finish

from llama import Engine, InputError, Llama, SamplingParams, Sequence, Transformer
from llama.engine import (
    AsyncEngine,
    embedding_sequences,
    query_likelihood,
    query_likelihood_sequences,
)
from llama.engine.decoding import BatchDecoder
from llama.errors import ContextLengthError

TEXTS = ["hello the world", "the user", "12 assist", "hello the world"]


def pooled(model: Transformer, prompt: list[int], start: int) -> torch.Tensor:
    """The definition, without chunks and cache."""
    with torch.no_grad():
        states = model.norm(model.hidden(torch.tensor([prompt])))[0, start:].double()
    mean = states.mean(0)
    return (mean / mean.norm()).float()


def scored(model: Transformer, prompt: list[int], start: int) -> list[float]:
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt]))[0].log_softmax(-1)
    return [logprobs[i - 1, prompt[i]].item() for i in range(start, len(prompt))]


@pytest.mark.parametrize("start", [0, 1, 7, 16, 33, 49])
def test_an_embedding_is_the_mean_of_the_hidden_states_from_a_position_on(
    llama: Llama, start: int
) -> None:
    engine = engine_of(llama, chunk=16)
    sequence = engine.add(Sequence(list(range(50)), pool_from=start))
    finish(engine)
    assert (sequence.finish_reason, sequence.tokens) == ("length", [])
    assert sequence.embedding is not None
    assert sequence.embedding.dtype == torch.float32
    right = pooled(llama.model, sequence.prompt, start)
    torch.testing.assert_close(sequence.embedding, right, atol=1e-5, rtol=0)
    assert sequence.embedding.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("start", [0, 1, 2, 16, 17, 33, 49])
def test_scores_may_begin_at_a_position_of_the_prompt(llama: Llama, start: int) -> None:
    engine = engine_of(llama, chunk=16)
    prompt = list(range(50))
    sequence = engine.add(Sequence(prompt, 0, score_prompt=True, score_from=start, top_logprobs=2))
    finish(engine)
    right = scored(llama.model, prompt, max(start, 1))
    assert sequence.prompt_logprobs == pytest.approx([0.0] * (start == 0) + right, abs=1e-4)
    assert len(sequence.prompt_likeliest) == len(sequence.prompt_logprobs)


def test_embeddings_are_the_same_bits_around_each_other_cached_and_preempted(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama.engine import kv_memory

    def requests() -> list[Sequence]:
        prompt = list(range(60))
        params = SamplingParams(temperature=0.7, seed=5)
        return [
            Sequence(prompt, pool_from=0),
            Sequence(prompt[:40], 20, params),
            Sequence(prompt, pool_from=37),
            Sequence(prompt[:9], 40, params),
            Sequence(prompt, 0, score_prompt=True, score_from=40),
            Sequence(prompt[:50], pool_from=20, priority=1),
        ]

    def results(sequences: list[Sequence]) -> list[Any]:
        return [
            (s.tokens, s.prompt_logprobs, None if s.embedding is None else s.embedding.tolist())
            for s in sequences
        ]

    def alone(sequence: Sequence) -> Sequence:
        engine = engine_of(llama, 1, chunk=16, prefix_memory=0)
        engine.add(sequence)
        finish(engine)
        return sequence

    right = results([alone(sequence) for sequence in requests()])
    monkeypatch.setattr(kv_memory, "BLOCK", 8)
    bytes_ = engine_of(llama).memory.position_bytes
    engine = engine_of(llama, 4, chunk=16, kv_memory=140 * bytes_, prefix_memory=10**7)
    for _ in range(3):
        sequences = requests()
        for sequence in sequences:
            engine.add(sequence)
            engine.step()
        finish(engine)
        assert results(sequences) == right
    # What is pooled is computed, what comes before it is copied from the store.
    assert [s.num_cached_tokens for s in sequences] == [0, 32, 32, 0, 32, 16]


def test_a_preempted_prompt_begins_anew(llama: Llama) -> None:
    right = engine_of(llama, chunk=16).add(Sequence(list(range(60)), pool_from=0))
    engine = engine_of(llama, chunk=16)
    sequence = engine.add(Sequence(list(range(60)), pool_from=0))
    engine.step()
    engine.step()
    engine._scheduler.preempt(engine._scheduler.jobs[sequence])
    finish(engine)
    assert sequence.num_preemptions == 1
    torch.testing.assert_close(
        sequence.embedding, pooled(llama.model, right.prompt, 0), atol=1e-5, rtol=0
    )


def test_scores_of_a_preempted_answer_stay(llama: Llama) -> None:
    engine = engine_of(llama, chunk=16)
    sequence = engine.add(Sequence(list(range(40)), 10, score_prompt=True, ignore_eos=True))
    while len(sequence.tokens) < 3:
        engine.step()
    scores = list(sequence.prompt_logprobs)
    engine._scheduler.preempt(engine._scheduler.jobs[sequence])
    while not engine.idle:
        engine.step()
        assert sequence.prompt_logprobs == scores
    assert len(sequence.tokens) == 10


def test_requests_of_one_prompt_share_its_scores_and_its_embedding(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    hidden = llama.model.hidden
    monkeypatch.setattr(
        llama.model, "hidden", lambda t, *a, **k: (runs.append(t.shape[1]), hidden(t, *a, **k))[1]
    )
    prompt = [5, 6, 7]
    found = llama.generate([prompt], 4, logprobs=True, echo=True, n=3)
    assert sum(size == len(prompt) for size in runs) == 1
    tokens, logprobs = found
    assert logprobs is not None
    assert [len(scores) for scores in logprobs] == [len(ids) for ids in tokens]
    assert all(scores[:3] == logprobs[0][:3] for scores in logprobs)
    runs.clear()
    vectors = llama.embed(["hello"] * 3)
    assert len(runs) == 1
    assert torch.equal(vectors[0], vectors[2])


def test_requests_of_one_prompt_that_want_different_things_of_it(llama: Llama) -> None:
    engine = engine_of(llama, rows=8)
    prompt = [5, 6, 7, 8]
    params = SamplingParams(temperature=0)
    sequences = [
        Sequence(prompt, 0, score_prompt=True),
        Sequence(prompt, 0, score_prompt=True, top_logprobs=2),
        Sequence(prompt, 0, score_prompt=True, score_from=2),
        Sequence(prompt, pool_from=0),
        Sequence(prompt, pool_from=2),
        Sequence(prompt, 3, params, ignore_eos=True),
        Sequence(prompt, 3, params, ignore_eos=True, score_prompt=True),
    ]
    engine.add(*sequences)
    finish(engine)
    assert [len(s.prompt_logprobs) for s in sequences] == [4, 4, 2, 0, 0, 0, 4]
    assert [len(s.tokens) for s in sequences] == [0, 0, 0, 0, 0, 3, 3]
    assert [len(s.prompt_likeliest) for s in sequences] == [1, 4, 0, 0, 0, 0, 1]
    first, second = sequences[3].embedding, sequences[4].embedding
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


@pytest.mark.parametrize("echo", [True, False])
def test_embed_gives_each_text_its_vector(llama: Llama, echo: bool) -> None:
    vectors = llama.embed(TEXTS, echo=echo)
    assert vectors.shape == (4, llama.model.params.dim)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert torch.equal(llama.embed([text], echo=echo)[0], vector)
        (sequence,) = embedding_sequences(llama.tokenizer, [text], echo=echo)
        ids, start = sequence.prompt, sequence.pool_from
        assert start is not None
        assert llama.tokenizer.decode(ids[start:]) == " " * echo + text
        right = pooled(llama.model, ids, start)
        torch.testing.assert_close(vector, right, atol=1e-5, rtol=0)
        assert llama.tokenizer.decode(ids).count(text) == 1 + echo
    assert not torch.equal(vectors[0], vectors[1])


def test_rerank_gives_the_likelihood_of_the_query_after_each_document(llama: Llama) -> None:
    documents, query = ["hello the user", "12", ""], "the world"
    scores = llama.rerank(query, documents, instruction="ask")
    for document, score in zip(documents, scores, strict=True):
        text = f"Passage: {document}\nask\nQuestion:"
        before = llama.tokenizer.encode(text, bos=True)
        prompt = before + llama.tokenizer.encode(f" {query}")
        right = scored(llama.model, prompt, len(before))
        assert score == pytest.approx(math.exp(sum(right) / len(right)), rel=1e-4)
        assert 0 < score < 1
        assert llama.rerank(query, [document], instruction="ask") == [score]


def test_the_document_of_another_query_comes_from_the_prefix_store(llama: Llama) -> None:
    engine = engine_of(llama, chunk=16)
    cold = engine_of(llama, chunk=16, prefix_memory=0)
    document = "hello the user the world 12"
    for query in ("the world", "user"):
        for each in (engine, cold):
            (sequence,) = query_likelihood_sequences(llama.tokenizer, query, [document], "ask")
            each.add(sequence)
            finish(each)
            score = query_likelihood(sequence)
            if each is engine:
                found, cached = score, sequence.num_cached_tokens
        assert found == score
        assert cached == (0 if query == "the world" else len(sequence.prompt) // 16 * 16)


def test_asyncio_runs_them_too(llama: Llama) -> None:
    service = AsyncEngine(engine_of(llama))
    sequences = embedding_sequences(llama.tokenizer, TEXTS)

    async def run() -> None:
        async for _ in service.stream(*sequences):
            pass

    asyncio.run(run())
    service.close()
    for sequence, vector in zip(sequences, llama.embed(TEXTS), strict=True):
        assert torch.equal(sequence.embedding, vector)


def test_a_batched_decoder_leaves_them_alone(llama: Llama) -> None:
    engine = engine_of(llama)
    engine._runner.decoder = BatchDecoder(llama.model, 3, 64, False)
    sequences = [Sequence([1, 2], 8, SamplingParams(seed=1)), Sequence([5, 6], pool_from=0)]
    engine.add(*sequences)
    finish(engine)
    torch.testing.assert_close(sequences[1].embedding, pooled(llama.model, [5, 6], 0))
    assert engine.memory.used == 0


def embed_on_ranks(folder: str) -> torch.Tensor:
    return Llama.build(folder, device="cpu", dtype="float32").embed(TEXTS)


def test_ranks_that_share_a_model_have_its_vectors(llama: Llama, checkpoint: Path) -> None:
    first, second = run_ranks(2, embed_on_ranks, str(checkpoint))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, llama.embed(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.embed("hello"), TypeError, r"texts must be a list, got one text: write"),
        (lambda m: m.embed([]), ValueError, "texts is empty: give at least one text"),
        (lambda m: m.embed(["a", ""]), ValueError, r"texts\[1\] is empty"),
        (lambda m: m.embed(["a", 5]), TypeError, r"texts\[1\] must be a string, got 5"),
        (lambda m: m.embed(["a"], adapter="x"), ValueError, "no adapter 'x' is loaded"),
        (
            lambda m: m.embed(["a", "z " * 50], echo=False),
            ContextLengthError,
            r"texts\[1\] has 1\d\d tokens, but the context is 64 \(max_seq_len\); shorten it",
        ),
        (
            lambda m: m.embed(["z " * 20]),
            ContextLengthError,
            r"texts\[0\], read twice \(echo\), has 1\d\d tokens, but the context is 64",
        ),
        (lambda m: m.rerank("", ["a"]), ValueError, "query is empty"),
        (lambda m: m.rerank("q", "a"), TypeError, "documents must be a list, got one document"),
        (lambda m: m.rerank("q", [None]), TypeError, r"documents\[0\] must be a string, got None"),
        (lambda m: m.rerank(3, ["a"]), TypeError, "query must be a string, got 3"),
        (
            lambda m: m.rerank("q", ["a", "z" * 90], instruction="ask"),
            ContextLengthError,
            r"documents\[1\], with the query, has 1\d\d tokens, but the context is 64",
        ),
        (lambda m: m.engine.add(Sequence([1, 2], pool_from=2)), ValueError, "less than the prompt"),
        (lambda m: m.engine.add(Sequence([1, 2], score_from=9)), ValueError, "2 tokens, got 9"),
        (lambda m: Sequence([1], 3, pool_from=0), ValueError, "nothing is generated: max_gen_len"),
        (lambda m: Sequence([1], pool_from=-1), ValueError, "pool_from must be at least 0"),
        (lambda m: Sequence([1], score_from=True), TypeError, "score_from must be an integer"),
    ],
)
def test_wrong_input(llama: Llama, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(llama)
    assert llama.engine.idle


def test_a_prompt_that_is_too_long_says_both_numbers(llama: Llama) -> None:
    with pytest.raises(InputError) as caught:
        llama.engine.check(Sequence([1] * 70))
    assert isinstance(caught.value, ContextLengthError)
    assert (caught.value.num_tokens, caught.value.max_seq_len) == (70, 64)
    assert str(caught.value).startswith("the prompt has 70 tokens, but the context is 64")
    block = 64 * llama.engine.memory.position_bytes
    engine = Engine(llama.model, llama.tokenizer, 1, 4096, kv_memory=block)
    with pytest.raises(ContextLengthError) as caught:
        engine.check(Sequence([1] * 70))
    assert (caught.value.num_tokens, caught.value.max_seq_len) == (70, 64)


def test_a_broken_model_is_an_error_and_no_vector(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = llama.model.hidden
    monkeypatch.setattr(llama.model, "hidden", lambda *a, **k: hidden(*a, **k) * float("nan"))
    with pytest.raises(FloatingPointError):
        llama.embed(["hello"])
    with pytest.raises(FloatingPointError):
        llama.rerank("hello", ["hello"], instruction="ask")
    assert llama.engine.idle
