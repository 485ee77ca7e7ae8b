"""Engines behind asyncio: several at once, closed, and with a defect."""

import asyncio
import contextlib
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from small_engines import engine_of

from llama import Engine, InputError, Llama, SamplingParams, Sequence
from llama.engine import AsyncEngine, Grammar, request
from llama.engine.inbox import Inbox
from llama.engine.scheduler import Scheduler

OPEN = {"ignore_eos": True, "params": SamplingParams(temperature=0.8, seed=1)}


async def consume(service: AsyncEngine, *sequences: Sequence) -> list[Sequence]:
    return [changed async for changed in service.stream(*sequences)]


@pytest.mark.parametrize(
    ("kind", "where"), [(Scheduler, "step"), (Inbox, "take"), (Engine, "_report")]
)
def test_a_defect_in_a_step_ends_every_stream_and_refuses_later_ones(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, kind: type, where: str
) -> None:
    engine = engine_of(llama)
    service = AsyncEngine(engine)
    works = getattr(kind, where)
    broken = threading.Event()

    def fail(self: Any, *args: Any) -> Any:
        if broken.is_set() and threading.current_thread().name == "llama engine":
            raise ZeroDivisionError("a defect")
        return works(self, *args)

    monkeypatch.setattr(kind, where, fail)

    async def main() -> None:
        streams = [service.stream(Sequence([i + 1] * 3, 60, **OPEN)) for i in range(5)]
        for stream in streams[:3]:  # two others wait for a row
            await anext(stream)
        rest = [asyncio.ensure_future(consume_rest(stream)) for stream in streams]
        await asyncio.sleep(0)
        broken.set()
        found = await asyncio.wait_for(asyncio.gather(*rest, return_exceptions=True), 60)
        assert {type(error) for error in found} == {ZeroDivisionError}
        lengths = []
        for _ in range(3):
            with pytest.raises(ZeroDivisionError, match="a defect") as caught:
                await consume(service, Sequence([1], 3))
            lengths.append(len(caught.traceback))
        assert len(set(lengths)) == 1  # the traceback does not grow

    async def consume_rest(stream: Any) -> None:
        async for _ in stream:
            pass

    asyncio.run(main())
    assert isinstance(service.error, ZeroDivisionError)
    service.close()


def test_what_is_submitted_while_it_closes_ends_too(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(llama)
    service = AsyncEngine(engine)
    sequence = Sequence([5, 6], 60, **OPEN)
    step = engine.step
    in_step, go_on = threading.Event(), threading.Event()

    def slow() -> list[Sequence]:
        with engine._stepping:  # so that what is added now stays in the inbox
            changed = step()
            in_step.set()
            assert go_on.wait(60)
        return changed

    monkeypatch.setattr(engine, "step", slow)

    async def main() -> None:
        first = asyncio.ensure_future(consume(service, Sequence([1, 2], 60, **OPEN)))
        await asyncio.to_thread(in_step.wait, 60)
        second = asyncio.ensure_future(consume(service, sequence))
        while sequence not in engine.unfinished:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(service.close))
        while not service._closed:
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(asyncio.gather(first, second, closing), 60)
        with pytest.raises(RuntimeError, match="closed"):
            await consume(service, Sequence([1], 3))

    asyncio.run(main())
    assert sequence.finish_reason == "cancelled"
    assert engine.idle
    assert engine.memory.used == 0
    service.close()  # again


def test_a_loop_that_is_gone_leaves_the_engine_alone(llama: Llama) -> None:
    service = AsyncEngine(engine_of(llama))

    async def leave() -> Any:
        stream = service.stream(Sequence([5, 6], 60, **OPEN))
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(leave())
    loop.close()  # the stream is still open
    assert asyncio.run(consume(service, Sequence([1, 2], 5, **OPEN)))[-1].finish_reason == "length"
    assert service.error is None
    service.close()
    del stream


def test_the_loop_goes_on_while_a_grammar_is_compiled(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    service = AsyncEngine(engine_of(llama))
    in_compiler, go_on = threading.Event(), threading.Event()

    class SlowGrammarState(request.GrammarState):
        def __init__(self, *args: Any) -> None:
            in_compiler.set()
            assert go_on.wait(10)
            super().__init__(*args)

    monkeypatch.setattr(request, "GrammarState", SlowGrammarState)

    async def main() -> str:
        sequence = Sequence([5], 8, grammar=Grammar(choice=["the"]))
        compiled = asyncio.ensure_future(consume(service, sequence))
        await asyncio.to_thread(in_compiler.wait, 10)
        await consume(service, Sequence([5], 2))
        go_on.set()
        await compiled
        with pytest.raises(InputError, match="grammar"):
            await consume(service, Sequence([5], 8, grammar=Grammar(regex="(")))
        return sequence.text

    assert asyncio.run(main()) == "the"
    service.close()


def test_engines_of_two_models_run_at_once_as_each_alone(checkpoint: Path) -> None:
    models = [Llama.build(checkpoint, device="cpu", dtype="float32") for _ in range(2)]
    with torch.no_grad():
        for weight in models[1].model.parameters():
            weight.mul_(1.01)
    small = Llama.build(
        Path(__file__).parents[2] / "params" / "tiny", device="cpu", quantize="int8", max_seq_len=64
    )
    models.append(small)

    def requests() -> list[Sequence]:
        return [Sequence([i + 1] * (1 + 5 * i), 20, **OPEN) for i in range(6)] + [
            Sequence([7] * 30, pool_from=3)
        ]

    def results(sequences: list[Sequence]) -> list[Any]:
        return [
            (s.tokens, s.logprobs, None if s.embedding is None else s.embedding.tolist())
            for s in sequences
        ]

    right = []
    for model in models:
        alone = requests()
        for sequence in alone:
            engine = engine_of(model, 1, prefix_memory=0)
            engine.add(sequence)
            while not engine.idle:
                engine.step()
        right.append(results(alone))
    services = [AsyncEngine(engine_of(model)) for model in models]

    async def main() -> list[list[Sequence]]:
        rounds = [requests() for _ in services]
        await asyncio.gather(
            *(consume(s, each) for s, batch in zip(services, rounds, strict=True) for each in batch)
        )
        return rounds

    for _ in range(3):
        assert [results(sequences) for sequences in asyncio.run(main())] == right
    services[0].close()
    assert results(asyncio.run(main_of(services[1], requests()))) == right[1]
    for service in services[1:]:
        service.close()


async def main_of(service: AsyncEngine, sequences: list[Sequence]) -> list[Sequence]:
    await asyncio.gather(*(consume(service, sequence) for sequence in sequences))
    return sequences


def test_the_engines_thread_has_the_number_of_threads_that_the_process_has(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama import distributed

    monkeypatch.setattr(distributed.adaptive_threads(), "full", 3)
    engine = engine_of(llama)
    numbers = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (numbers.append(torch.get_num_threads()), step()))
    service = AsyncEngine(engine)
    asyncio.run(consume(service, Sequence([5], 2)))
    service.close()
    assert set(numbers) == {3}


def test_a_model_that_is_closed_and_dropped_is_freed_at_once(checkpoint: Path) -> None:
    pytest.importorskip("llguidance")
    gc.collect()
    gc.disable()
    try:
        llama = Llama.build(checkpoint, device="cpu", draft=checkpoint)
        model, draft = weakref.ref(llama.model), weakref.ref(llama.engine.draft)
        tokenizer = weakref.ref(llama.tokenizer)
        service = AsyncEngine(llama.engine)
        sequences = [
            Sequence([5, 6], 8, **OPEN),
            Sequence([5, 6], 8, **OPEN),
            Sequence([5], 8, grammar=Grammar(regex="[a-z]{3}")),
            Sequence([5, 6], pool_from=0),
        ]
        asyncio.run(consume(service, *sequences))
        llama.text_completion(["hello"], max_gen_len=4)
        service.close()
        del service, llama, sequences
        assert (model(), draft(), tokenizer()) == (None, None, None)
    finally:
        gc.enable()


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_request_that_takes_long_to_prepare_does_not_stop_the_loop(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """Nor does it run, if its consumer is gone by then, or the engine is closed."""
    engine = engine_of(llama)
    service = AsyncEngine(engine)
    start = Sequence.start
    in_start, go_on = threading.Event(), threading.Event()

    def slow(self: Sequence, *args: Any) -> None:
        if self.grammar is not None:
            in_start.set()
            assert go_on.wait(60)
        start(self, *args)

    monkeypatch.setattr(Sequence, "start", slow)
    late = Sequence([5, 6], 60, grammar=Grammar(regex="(a|b)*"))

    async def main() -> None:
        preparing = asyncio.ensure_future(consume(service, late))
        await asyncio.to_thread(in_start.wait, 60)
        (*_, other) = await consume(service, Sequence([1, 2], 5, **OPEN))
        assert other.finish_reason == "length"
        closing = None
        if is_cancelled:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
        else:
            closing = asyncio.ensure_future(asyncio.to_thread(service.close))
            while not service._closed:
                await asyncio.sleep(0)
        # Nothing runs before it is cancelled.
        with engine._stepping if is_cancelled else contextlib.nullcontext():
            go_on.set()
            while late.finish_reason is None:
                await asyncio.sleep(0)
        if closing is not None:
            await asyncio.wait_for(asyncio.gather(preparing, closing), 60)

    asyncio.run(main())
    assert late.finish_reason == "cancelled"
    service.close()
    assert engine.idle
