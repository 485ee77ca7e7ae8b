"""Requests that fail, threads, memory and prefixes: none of it changes another request's answer."""

import asyncio
import itertools
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import MERGES, run_ranks, tiny_args, write_tiktoken
from random_schedules import FORMATS, build, outcome, run_schedule
from small_engines import engine_of, finish

from llama import Engine, InputError, Llama, SamplingParams, Sequence, Tokenizer, Transformer
from llama.cache import KVCache
from llama.engine import AsyncEngine, Grammar, PrefixStore
from llama.engine.prefix_store import fingerprint
from llama.lora.adapter_layers import LoraConfig, add_lora, lora_parameters, save_adapter

PLAIN = SamplingParams(temperature=0.9, top_p=1.0, seed=4)


def expected(llama: Llama, sequence: Sequence, **options: Any) -> tuple:
    engine = engine_of(llama, 1, prefix_memory=0, **options)
    copy = Sequence(**{**sequence.request(), "speculate": False})
    engine.add(copy)
    finish(engine)
    return outcome(copy)


@pytest.mark.parametrize("name", FORMATS)
def test_random_schedules_give_what_each_request_gives_alone(name: str) -> None:
    seed = random.randrange(10**9)
    print(f"schedule {seed} of {name}")  # shown where it fails
    run_schedule(build(name), random.Random(seed), 8)


# ---- a request fails alone -----------------------------------------------------------------------


def everything_banned(llama: Llama) -> Sequence:
    ban = dict.fromkeys(range(llama.tokenizer.n_words), -float("inf"))
    return Sequence([5, 6], 9, SamplingParams(logit_bias=ban))


def impossible_grammar(llama: Llama) -> Sequence:
    ban = dict.fromkeys(range(256), -float("inf"))  # all single bytes
    return Sequence([5, 6], 9, SamplingParams(logit_bias=ban), grammar=Grammar(regex="qzq"))


@pytest.mark.parametrize("broken", [everything_banned, impossible_grammar])
@pytest.mark.parametrize("first", [True, False])
def test_a_request_that_can_choose_no_token_ends_alone(
    llama: Llama, broken: Callable[[Llama], Sequence], first: bool
) -> None:
    if broken is impossible_grammar:
        pytest.importorskip("llguidance")
    engine, bad = engine_of(llama), broken(llama)
    good = [Sequence([i + 1] * 4, 12, PLAIN) for i in range(2)]
    for sequence in (bad, *good) if first else (*good, bad):
        engine.add(sequence)
        engine.step()
    finish(engine)
    assert bad.finish_reason == "error"
    assert "ban every token" in str(bad.error)
    assert engine.memory.used == 0
    for sequence in good:
        assert outcome(sequence) == expected(llama, sequence)


def test_llama_raises_the_error_of_a_request(llama: Llama) -> None:
    ban = dict.fromkeys(range(llama.tokenizer.n_words), -float("inf"))
    with pytest.raises(InputError, match="ban every token"):
        llama.generate([[5, 6], [7]], 4, logit_bias=ban)
    assert llama.engine.idle
    assert len(llama.generate([[5, 6]], 4)[0][0]) >= 0


def test_nan_in_one_row_ends_that_request(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = llama.model.tok_embeddings.forward

    def damaged(tokens: torch.Tensor) -> torch.Tensor:
        return embed(tokens).masked_fill((tokens == 9).unsqueeze(-1), float("nan"))

    monkeypatch.setattr(llama.model.tok_embeddings, "forward", damaged)
    engine = engine_of(llama)
    bad = Sequence([5, 9, 6], 9, PLAIN)
    good = [Sequence([i + 1] * 4, 12, PLAIN) for i in range(2)]
    engine.add(good[0], bad, good[1])
    finish(engine)
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, FloatingPointError)
    for sequence in good:
        assert outcome(sequence) == expected(llama, sequence)


def test_memory_that_runs_out_in_one_prompt_ends_that_request(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = llama.model.hidden

    def scarce(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if (tokens == 9).any():
            raise MemoryError("no memory for so much")
        return run(tokens, *args, **kwargs)

    monkeypatch.setattr(llama.model, "hidden", scarce)
    engine = engine_of(llama, chunk=16)
    bad = Sequence([5] * 20 + [9] * 3, 9, PLAIN)
    good = [Sequence([i + 1] * 4, 12, PLAIN) for i in range(2)]
    engine.add(good[0], bad, good[1])
    finish(engine)
    assert isinstance(bad.error, MemoryError)
    assert engine.memory.used == 0
    for sequence in good:
        assert outcome(sequence) == expected(llama, sequence)


def test_a_bias_on_ids_that_only_padding_has_is_refused_when_it_is_added(
    llama: Llama, tokenizer: Tokenizer
) -> None:
    padded = Transformer(tiny_args(vocab_size=tokenizer.n_words + 16, max_seq_len=64))
    engine = Engine(padded, tokenizer, 2, 64)
    good = engine.add(Sequence([1, 2], 3))
    for wrong in (
        Sequence([1], 3, SamplingParams(logit_bias={tokenizer.n_words: 5.0})),
        Sequence([tokenizer.n_words + 1], 3, SamplingParams(repetition_penalty=1.5)),
    ):
        with pytest.raises(InputError, match=r"54[45]"):
            engine.add(wrong)
    finish(engine)
    assert good.finish_reason in ("stop", "length")


def test_of_requests_that_are_added_together_all_are_refused_or_none(llama: Llama) -> None:
    engine = engine_of(llama)
    with pytest.raises(InputError):
        engine.add(Sequence([1], 3), Sequence([1] * 65, 3))
    assert engine.idle


# ---- threads -------------------------------------------------------------------------------------


def test_calls_from_many_threads_are_right_and_batch_with_each_other(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["hello", "the", " world", "12 and", "user", "th"] * 3
    options = {"temperature": 0.8, "seed": 3, "max_gen_len": 12}
    right = {text: llama.text_completion([text], **options)[0] for text in set(texts)}
    rows = []
    run = llama.engine._runner.decoder.run
    monkeypatch.setattr(
        llama.engine._runner.decoder, "run", lambda f: (rows.append(len(f)), run(f))[1]
    )
    found: dict[int, Any] = {}

    def ask(i: int, text: str) -> None:
        if i % 2:
            found[i] = llama.text_completion([text], **options)[0]["generation"]
        else:
            chunks = llama.text_completion_stream([text], **options)
            found[i] = "".join(chunk.text for chunk in chunks)

    threads = [threading.Thread(target=ask, args=(i, text)) for i, text in enumerate(texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(texts))] == [right[text]["generation"] for text in texts]
    assert max(rows) > 1
    assert llama.engine.idle


def test_a_stream_that_is_dropped_cancels_while_another_thread_steps(llama: Llama) -> None:
    stream = llama.generate_stream([[5, 6]], 60)
    next(stream)
    del stream
    assert llama.engine.running == []


def test_what_is_cancelled_during_the_last_step_is_taken(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(llama)
    sequence = engine.add(Sequence([5, 6], 3, PLAIN))
    step = engine._scheduler.step

    def step_and_cancel() -> None:
        step()
        other = threading.Thread(target=engine.cancel, args=(Sequence([7]),))
        other.start()
        other.join()

    monkeypatch.setattr(engine._scheduler, "step", step_and_cancel)
    for _ in engine.run([sequence]):
        pass
    assert sequence.finish_reason is not None
    assert engine.idle


def test_asyncio_streams_at_once_and_cancels_with_its_consumer(llama: Llama) -> None:
    engine = engine_of(llama)
    service = AsyncEngine(engine)
    sequences = [Sequence([i + 1] * 3, 12, PLAIN) for i in range(5)]

    async def consume(sequence: Sequence) -> str:
        return "".join([changed.take_text() async for changed in service.stream(sequence)])

    async def leave_early() -> Sequence:
        sequence = Sequence([3], None, SamplingParams(temperature=0, logit_bias={7: 1e4}))
        stream = service.stream(sequence)
        async for _ in stream:
            break
        await stream.aclose()
        return sequence

    async def main() -> tuple[list[str], Sequence]:
        texts = await asyncio.gather(*map(consume, sequences))
        left = await leave_early()
        with pytest.raises(InputError, match="65 tokens"):
            await consume(Sequence([1] * 65))
        return texts, left

    texts, left = asyncio.run(main())
    service.close()
    assert [text for text in texts] == [sequence.text for sequence in sequences]
    for sequence in sequences:
        assert outcome(sequence) == expected(llama, sequence)
    assert left.finish_reason == "cancelled"
    assert engine.idle


def ranks_follow() -> list[tuple]:
    torch.manual_seed(0)
    from llama import distributed
    from llama.engine.engine import Engine as RankEngine

    distributed.initialize()
    tokenizer = Tokenizer(Path(__file__).parents[2] / "params" / "tiny" / "tokenizer.model")
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64))
    engine = RankEngine(model, tokenizer, 2, 64)
    if distributed.model_parallel_rank() > 0:
        engine.follow()
        return []
    engine.inbox.is_followed = True
    sequences = [Sequence([i + 1, 2], 8, SamplingParams(seed=i)) for i in range(4)]
    service = AsyncEngine(engine)

    async def consume(sequence: Sequence) -> None:
        async for _ in service.stream(sequence):
            if sequence is sequences[3]:
                break

    async def main() -> None:
        await asyncio.gather(*map(consume, sequences))

    asyncio.run(main())
    service.close()
    return [(s.finish_reason, s.tokens) for s in sequences]


def test_other_ranks_run_what_the_first_ranks_threads_ask_for() -> None:
    outcomes, nothing = run_ranks(2, ranks_follow)
    assert nothing == []
    assert [reason for reason, _ in outcomes[:3]] == ["length"] * 3
    assert all(len(tokens) == 8 for _, tokens in outcomes[:3])
    assert outcomes[3][0] in ("cancelled", "length")


# ---- memory --------------------------------------------------------------------------------------


def test_an_open_ended_request_takes_the_memory_that_it_uses(llama: Llama) -> None:
    engine = engine_of(llama)
    plain = SamplingParams(temperature=0, logit_bias={7: 1e4})
    engine = Engine(llama.model, llama.tokenizer, 2, 4096, kv_memory=10**7)
    engine.add(Sequence([5] * 10, None, plain, speculate=False))
    engine.step()
    assert engine.memory.used <= 128 * engine.memory.position_bytes
    for _ in range(200):
        engine.step()
    assert engine.memory.used <= 384 * engine.memory.position_bytes


def test_what_does_not_fit_waits_or_is_preempted_with_the_same_answer(llama: Llama) -> None:
    bytes_ = engine_of(llama).memory.position_bytes
    engine = engine_of(llama, rows=4, kv_memory=128 * bytes_, chunk=16)
    no_stop = {token: -torch.inf for token in llama.tokenizer.stop_tokens}
    params = SamplingParams(temperature=0.7, seed=5, logit_bias=no_stop)
    sequences = [Sequence([i + 1] * (3 + 9 * i), 30, params) for i in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    finish(engine)
    for sequence in sequences:
        assert outcome(sequence) == expected(llama, sequence, chunk=16)
    assert engine.memory.used == 0


def test_a_request_that_is_preempted_continues_where_it_was(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama.engine import kv_memory, scheduler

    monkeypatch.setattr(kv_memory, "BLOCK", 8)
    monkeypatch.setattr(scheduler, "_MARGIN", 0)
    bytes_ = engine_of(llama).memory.position_bytes
    engine = engine_of(llama, rows=4, kv_memory=64 * bytes_, chunk=16)
    no_stop = {token: -torch.inf for token in llama.tokenizer.stop_tokens}
    params = SamplingParams(temperature=0.7, seed=5, logit_bias=no_stop)
    sequences = [Sequence([i + 1] * 6, 40, params) for i in range(4)]
    engine.add(*sequences)
    finish(engine)
    assert sequences[0].num_preemptions == 0
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    for sequence in sequences:
        assert outcome(sequence) == expected(llama, sequence, chunk=16)


def test_a_prompt_that_memory_can_never_hold_is_refused(llama: Llama) -> None:
    engine = engine_of(llama, kv_memory=64 * engine_of(llama).memory.position_bytes)
    assert engine.memory.positions == 64
    engine = engine_of(llama, kv_memory=32 * engine_of(llama).memory.position_bytes)
    with pytest.raises(InputError, match=r"has 40 tokens, but the memory .* holds 0 \(kv_memory\)"):
        engine.add(Sequence([1] * 40))


def test_a_higher_priority_is_served_first(llama: Llama) -> None:
    engine = engine_of(llama, rows=1)
    order: list[int] = []
    for i, priority in enumerate((0, 0, 5, 1)):
        sequence = Sequence([i + 1], 2, priority=priority)
        sequence.on_change = lambda s, i=i: order.append(i)
        engine.add(sequence)
    finish(engine)
    assert list(dict.fromkeys(order)) == [2, 3, 0, 1]


# ---- the prefix store ----------------------------------------------------------------------------


def test_hit_miss_reload_and_no_store_give_the_same_bits(llama: Llama, tmp_path: Path) -> None:
    prompt = list(range(50))
    request = Sequence(prompt, 10, PLAIN)
    right = expected(llama, Sequence(prompt, 10, PLAIN))

    def run(engine: Engine) -> Sequence:
        sequence = engine.add(Sequence(**request.request()))
        finish(engine)
        return sequence

    def new_engine() -> Engine:
        return engine_of(llama, chunk=16, prefix_memory=10**6, prefix_folder=tmp_path)

    engine = new_engine()
    miss, hit, reloaded = run(engine), run(engine), run(new_engine())
    assert [s.num_cached_tokens for s in (miss, hit, reloaded)] == [0, 48, 48]
    engine = engine_of(llama, chunk=16, prefix_memory=0)
    without = run(engine)
    whole = engine_of(llama, prefix_memory=0)
    assert outcome(hit) == outcome(reloaded) == outcome(miss) == outcome(without)
    assert outcome(run(whole))[0] == right[0]


def test_a_chunk_that_the_store_has_is_not_copied_out_again(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = KVCache.read
    monkeypatch.setattr(
        KVCache, "read", lambda self, *ends: (reads.append(ends), read(self, *ends))[1]
    )
    engine = engine_of(llama, chunk=16, prefix_memory=10**6)
    requests = [{}, {}, {"score_prompt": True}]  # the last one computes all chunks again
    for options in requests:
        engine.add(Sequence(list(range(48)), 2, PLAIN, **options))
        finish(engine)
    assert reads == [(0, 16), (16, 32), (32, 48)]


def test_a_damaged_file_is_no_hit_and_is_replaced(llama: Llama, tmp_path: Path) -> None:
    def run() -> Sequence:
        engine = engine_of(llama, chunk=16, prefix_folder=tmp_path, prefix_memory=10**6)
        sequence = engine.add(Sequence(list(range(40)), 4, PLAIN))
        finish(engine)
        return sequence

    first = run()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    cut, changed = (path.read_bytes() for path in files)
    files[0].write_bytes(cut[:-5])
    files[1].write_bytes(changed[:40] + b"x" + changed[41:])
    later = [run() for _ in range(4)]
    assert later[0].num_cached_tokens == 0 or later[0].num_cached_tokens == 16
    assert later[-1].num_cached_tokens == 32
    assert all(outcome(sequence) == outcome(first) for sequence in later)


def test_the_store_keeps_to_its_budget_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    chunk = (torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5))
    size = 2 * 480
    store = PrefixStore(3 * size, 4, "x", tmp_path, folder_budget=10**9)
    prompts = [[i] * 9 for i in range(4)]
    for prompt in prompts[:3]:
        store.put(prompt, 0, lambda: chunk)
    store.find(prompts[0])
    store.put(prompts[3], 0, lambda: chunk)
    assert store.used == 3 * size
    in_memory = PrefixStore(0, 4, "x", None)
    assert [len(store.find(prompt)) for prompt in prompts] == [1, 1, 1, 1]  # one from the folder
    assert in_memory.find(prompts[0]) == []
    store.put(prompts[0], 1, lambda: chunk)
    assert len(store.find(prompts[0])) == 2
    assert len(store.find([*prompts[0][:4], 7, 7, 7, 7, 7])) == 1
    assert len(store.find(prompts[0][:8])) == 1  # the chunk that holds the last token is computed


def test_other_weights_other_chunks(llama: Llama) -> None:
    before = fingerprint(llama.model)
    weight = llama.model.layers[0].attention.wq.weight
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]].clone()
        swapped = fingerprint(llama.model)
        weight[[0, 1]] = weight[[1, 0]].clone()
    assert before != swapped
    assert before == fingerprint(llama.model)


# ---- what a request may ask for ------------------------------------------------------------------


def test_answers_of_one_prompt_compute_it_once(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    hidden = llama.model.hidden
    monkeypatch.setattr(
        llama.model, "hidden", lambda t, *a, **k: (shapes.append(t.shape[1]), hidden(t, *a, **k))[1]
    )
    options = {"temperature": 1.0, "top_p": 1.0, "seed": 3, "max_gen_len": 5}
    found = llama.text_completion(["hello the world"], n=3, **options)
    assert sum(shape > 1 for shape in shapes) == 1
    assert len({result["generation"] for result in found}) > 1
    again = llama.text_completion(["hello the world"] * 3, **options)
    assert [r["generation"] for r in found] == [r["generation"] for r in again]


def test_likeliest_tokens_of_answer_and_prompt(llama: Llama) -> None:
    engine = engine_of(llama, chunk=4)
    greedy = SamplingParams(temperature=0)
    sequence = engine.add(
        Sequence([5, 6, 7, 8, 9, 10], 4, greedy, score_prompt=True, top_logprobs=3)
    )
    finish(engine)
    assert [len(best) for best in sequence.prompt_likeliest] == [0, 3, 3, 3, 3, 3]
    for token, logprob, best in zip(
        sequence.tokens, sequence.logprobs, sequence.likeliest, strict=True
    ):
        assert best[0] == (token, logprob)
        assert best[0][1] >= best[1][1] >= best[2][1]
    with torch.no_grad():
        logprobs = llama.model(torch.tensor([sequence.prompt]))[0].log_softmax(-1)
    for i, row in enumerate(logprobs[:-1], start=1):
        best, token = sequence.prompt_likeliest[i], sequence.prompt[i]
        assert [found for found, _ in best] == row.topk(3).indices.tolist()
        assert sequence.prompt_logprobs[i] == pytest.approx(row[token].item(), abs=1e-4)


def test_stops_say_what_matched_and_wait_for_min_tokens(
    chain: Callable[..., Llama], tokenizer: Tokenizer
) -> None:
    model = chain([*tokenizer.encode("abc"), tokenizer.eos_id])
    a = tokenizer.encode("a")

    def run(**options: Any) -> Sequence:
        engine = Engine(model.model, tokenizer, 1, 32)
        sequence = engine.add(Sequence(a, 6, SamplingParams(temperature=0), **options))
        finish(engine)
        return sequence

    assert run().stopped_by == tokenizer.eos_id
    found = run(stop=("x", "c"))
    assert (found.text, found.stopped_by) == ("b", "c")
    found = run(stop=("c",), min_tokens=2)
    assert (found.text, found.stopped_by) == ("bc", tokenizer.eos_id)
    assert len(run(min_tokens=4).tokens) == 6
    assert run(ignore_eos=True).tokens[2] == tokenizer.eos_id
    assert run(ignore_eos=True).finish_reason == "length"


def test_times(llama: Llama) -> None:
    engine = engine_of(llama, rows=2, chunk=16)
    ban = dict.fromkeys(range(llama.tokenizer.n_words), -float("inf"))
    whole = ["queued", "started", "first_token", "finished"]
    plain, sibling = Sequence([5, 6], 3, PLAIN), Sequence([5, 6], 3, PLAIN, sample_index=1)
    banned = Sequence([5, 6], 3, SamplingParams(logit_bias=ban))
    pooled, late = Sequence([5, 6], pool_from=0), Sequence([7], 3)
    full = Sequence([1] * 64, 3)
    engine.add(plain, sibling)
    for sequence in (banned, pooled, late, full):
        engine.add(sequence)
    engine.step()
    started = dict(plain.times)
    engine._scheduler.preempt(engine._scheduler.jobs[plain])
    engine.cancel(late)
    finish(engine)
    wanted = {
        plain: whole,
        sibling: whole,
        banned: ["queued", "started", "finished"],
        pooled: ["queued", "started", "finished"],
        late: ["queued", "finished"],
        full: ["queued", "finished"],
    }
    for sequence, names in wanted.items():
        assert sorted(sequence.times, key=sequence.times.__getitem__) == names
    assert plain.num_preemptions == 1
    assert started.items() <= plain.times.items()  # of the first time


def test_who_sees_that_a_request_is_finished_sees_when(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def assign(sequence: Sequence, name: str, value: Any) -> None:
        if name == "finish_reason" and value:
            seen.append(list(sequence.times))
        object.__setattr__(sequence, name, value)

    monkeypatch.setattr(Sequence, "__setattr__", assign)
    engine = engine_of(llama)
    engine.add(Sequence([5, 6], 3, PLAIN))
    engine.add(Sequence([5, 6], 30, PLAIN, stop=tuple("aeiouthe .")))
    engine.cancel(engine.add(Sequence([5, 6], 3, PLAIN)))
    finish(engine)
    assert len(seen) == 3
    assert all("finished" in names for names in seen)


def test_an_engine_counts_what_it_does(llama: Llama) -> None:
    engine = engine_of(llama, rows=2, chunk=16, prefix_memory=10**7)
    params = SamplingParams(seed=1, logit_bias={t: -9e9 for t in llama.tokenizer.stop_tokens})
    sequences = [engine.add(Sequence([*range(20), i], 5, params)) for i in range(4)]
    assert (engine.stats.waiting, engine.stats.waiting_prompt_tokens) == (4, 84)
    engine.step()
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.waiting_prompt_tokens) == (2, 2, 42)
    assert stats.kv_positions_used == engine.memory.used // engine.memory.position_bytes > 42
    assert stats.kv_positions == engine.memory.positions
    engine.cancel(sequences[3])
    engine.add(Sequence([1] * 64, 5))  # no room for an answer
    finish(engine)
    ban = dict.fromkeys(range(llama.tokenizer.n_words), -float("inf"))
    engine.add(Sequence([5], 5, SamplingParams(logit_bias=ban)))
    finish(engine)
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.waiting_prompt_tokens) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens) == (3 * 21 + 1, 15)
    assert stats.prefix_queries == 3 * 21 + 1
    assert stats.prefix_hits == sum(s.num_cached_tokens for s in sequences) > 0
    assert stats.finished == {"length": 4, "cancelled": 1, "error": 1}
    assert stats.kv_positions_used == stats.preemptions == 0


def test_requests_that_other_threads_add_are_counted_at_once(llama: Llama) -> None:
    engine = engine_of(llama)
    with engine._stepping:  # as a step does, in this thread
        thread = threading.Thread(target=engine.add, args=[Sequence([5, 6, 7], 3)])
        thread.start()
        thread.join()
        assert engine.waiting == []
        assert (engine.stats.waiting, engine.stats.waiting_prompt_tokens) == (1, 3)
    finish(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_logprobs": -1}, "top_logprobs must be at least 0, got -1"),
        ({"min_tokens": "2"}, "min_tokens must be an integer, got '2'"),
        ({"priority": 1.5}, "priority must be an integer, got 1.5"),
        ({"grammar": {"type": "object"}}, r"write Grammar\(json_schema=...\)"),
        ({"grammar": Grammar(regex="a"), "ignore_eos": True}, "exclude each other"),
        ({"num_prefix_tokens": 3}, "num_prefix_tokens must be less than the prompt's 2 tokens"),
        ({"adapter": "polite"}, "no adapter 'polite' is loaded; there are none"),
    ],
)
def test_wrong_settings_are_named_when_a_request_is_added(
    llama: Llama, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine_of(llama).add(Sequence([1, 2], 3, **options))


# ---- adapters ------------------------------------------------------------------------------------


def write_adapter(checkpoint: Path, folder: Path, seed: int) -> Path:
    """An adapter of random numbers."""
    llama = Llama.build(checkpoint, device="cpu", dtype="float32")
    add_lora(llama.model, LoraConfig(r=4, alpha=8, seed=seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in lora_parameters(llama.model):
            parameter.data.normal_(std=0.5)
    save_adapter(llama.model, folder)
    return folder


def test_adapters_share_a_batch_and_the_store_and_answer_as_alone(
    llama: Llama, checkpoint: Path, tmp_path: Path
) -> None:
    names = ("polite", "rude")
    folders = {n: write_adapter(checkpoint, tmp_path / n, i) for i, n in enumerate(names)}
    engine = engine_of(llama, rows=6, chunk=16)
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    prompt = list(range(40))
    wanted = [(name, seed) for seed in (1, 2) for name in (None, *names)]
    sequences = [
        Sequence(prompt, 12, SamplingParams(temperature=2, seed=seed), adapter=name)
        for name, seed in wanted
    ]
    for sequence in sequences:
        engine.add(sequence)
        engine.step()
    finish(engine)
    assert len({tuple(sequence.tokens) for sequence in sequences}) == 6
    for sequence, (name, seed) in zip(sequences, wanted, strict=True):
        adapter = None if name is None else folders[name]
        alone = Llama.build(checkpoint, device="cpu", dtype="float32", adapter=adapter)
        params = SamplingParams(temperature=2, seed=seed)
        right = Sequence(prompt, 12, params, speculate=False)
        plain = engine_of(alone, chunk=16, prefix_memory=0)
        plain.add(right)
        finish(plain)
        assert outcome(sequence) == outcome(right)
    with pytest.raises(InputError, match="there is an adapter 'rude' already"):
        engine.load_adapter("rude", folders["polite"])
    with pytest.raises(InputError, match="no adapter 'kind' is loaded; there are polite, rude"):
        engine.add(Sequence([1], adapter="kind"))


def test_engines_of_one_model_share_its_adapters(
    llama: Llama, checkpoint: Path, tmp_path: Path
) -> None:
    right = [expected(llama, Sequence([5, 6], 8, PLAIN))]
    first, second = engine_of(llama), engine_of(llama)
    first.load_adapter("polite", write_adapter(checkpoint, tmp_path / "polite", 3))
    adapted = first.add(Sequence([5, 6], 8, PLAIN, adapter="polite"))
    first.step()  # the adapter took part last
    plain, also = Sequence([5, 6], 8, PLAIN), Sequence([5, 6], 8, PLAIN, adapter="polite")
    second.add(plain)
    second.add(also)
    finish(second)
    finish(first)
    assert [outcome(plain)] == right
    assert outcome(also) == outcome(adapted)
    assert plain.tokens != also.tokens


def test_an_adapter_is_unloaded_when_no_request_uses_it(
    llama: Llama, checkpoint: Path, tmp_path: Path
) -> None:
    names = ("polite", "rude")
    folders = {n: write_adapter(checkpoint, tmp_path / n, i) for i, n in enumerate(names)}
    engine, other = engine_of(llama, chunk=16), engine_of(llama)
    layers = list(llama.model.named_modules())
    right = expected(llama, Sequence([5, 6], 8, PLAIN))
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    assert engine.adapters == other.adapters == ["polite", "rude"]
    runs = engine.add(Sequence([5, 6], 8, PLAIN, adapter="polite"))
    with pytest.raises(InputError, match="'polite' is in use by 1 unfinished requests"):
        engine.unload_adapter("polite")
    late = other.add(Sequence([5, 6], 8, PLAIN, adapter="rude"))
    other.step()
    engine.unload_adapter("rude")  # another engine's requests are not known
    finish(other)
    assert late.finish_reason == "error"
    assert "no adapter 'rude' is loaded; there are polite" in str(late.error)
    finish(engine)
    adapted = outcome(runs)
    engine.unload_adapter("polite")
    assert engine.adapters == []
    assert list(llama.model.named_modules()) == layers
    with pytest.raises(InputError, match="no adapter 'polite' is loaded; there are none"):
        engine.unload_adapter("polite")
    with pytest.raises(InputError, match="no adapter 'polite' is loaded"):
        engine.add(Sequence([5, 6], 8, PLAIN, adapter="polite"))
    plain = engine.add(Sequence([5, 6], 8, PLAIN))
    finish(engine)
    assert outcome(plain) == right
    engine.load_adapter("polite", folders["polite"])
    again = engine.add(Sequence([5, 6], 8, PLAIN, adapter="polite"))
    finish(engine)
    assert outcome(again) == adapted != right


# ---- guesses -------------------------------------------------------------------------------------


def test_guesses_shorten_a_repeating_answer_and_do_not_change_it(
    chain: Callable[..., Llama], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tokenizer.encode("abcdefgh")
    model = chain([*script, script[0]], max_seq_len=64)
    ids = script * 2
    runs: dict[bool, Sequence] = {}
    steps = {}
    for speculate in (True, False):
        engine = Engine(model.model, tokenizer, 1, 64)
        params = SamplingParams(temperature=0.3, seed=1)
        runs[speculate] = engine.add(Sequence(ids, 40, params, speculate=speculate))
        steps[speculate] = next(i for i in itertools.count() if engine.idle or not engine.step())
    assert outcome(runs[True]) == outcome(runs[False])
    assert runs[True].num_accepted_tokens > 10
    assert steps[True] < steps[False] * 0.7


def test_a_draft_model_guesses_and_does_not_change_the_answer(
    checkpoint: Path, tmp_path: Path
) -> None:
    llama = Llama.build(checkpoint, device="cpu", dtype="float32", draft=checkpoint)
    params = SamplingParams(
        temperature=0, logit_bias={t: -9e9 for t in llama.tokenizer.stop_tokens}
    )
    sequences = [Sequence([i + 1] * 5, 30, params) for i in range(2)]
    llama.engine.add(*sequences)
    finish(llama.engine)
    for sequence in sequences:
        assert sequence.num_accepted_tokens > 15  # it is the same model
        assert outcome(sequence) == expected(llama, sequence)
    shutil.copytree(checkpoint, tmp_path / "other")
    write_tiktoken(tmp_path / "other" / "tokenizer.model", [*MERGES[:-1], b"zz"])
    with pytest.raises(InputError, match="is not that of"):
        Llama.build(checkpoint, device="cpu", draft=tmp_path / "other")
