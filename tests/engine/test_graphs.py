"""Decoding by graphs: here a graph is the step itself, run again over the same memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama import Engine, Llama, SamplingParams, Sequence, distributed
from llama.engine import cuda_graphs, decoding, kv_memory, model_runner
from llama.engine.cuda_graphs import DecodeGraphs, Step
from llama.engine.decoding import BatchDecoder


class Recorders:
    """Stands for a GPU: makes recorders, and counts what they are given."""

    def __init__(self) -> None:
        self.made: list[list[tuple[int, ...]]] = []  # a recorder each: the shapes of its logits
        self.replays = 0

    def __call__(self, device: torch.device) -> Callable[[Step], Step]:
        shapes: list[tuple[int, ...]] = []
        self.made.append(shapes)

        def record(step: Step) -> Step:
            output = step()
            shapes.append(tuple(output.shape))

            def replay() -> torch.Tensor:
                self.replays += 1
                return output.copy_(step())

            return replay

        return record


@pytest.fixture(autouse=True)
def short_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MIN_POSITIONS", 8)
    monkeypatch.setattr(kv_memory, "BLOCK", 4)


def engine_of(llama: Llama, rows: int, recorder: Callable | None = None) -> Engine:
    engine = Engine(llama.model, llama.tokenizer, max_batch_size=rows, max_seq_len=64)
    engine._runner.decoder = decoder = BatchDecoder(llama.model, rows, 64, True)
    if recorder is not None:
        decoder._graphs = DecodeGraphs(llama.model, recorder)
    return engine


def answers(engine: Engine, sizes: list[tuple[int, int]]) -> list[Sequence]:
    """Of requests (prompt size, answer size), each of which joins while those before it decode."""
    generator = torch.Generator().manual_seed(5)
    sequences = []
    for seed, (size, wanted) in enumerate(sizes):
        prompt = torch.randint(0, 500, (size,), generator=generator).tolist()
        params = SamplingParams(temperature=float(seed % 3), top_p=1.0, seed=seed)
        sequences.append(engine.add(Sequence(prompt, wanted, params)))
        for _ in range(1 + seed % 3):
            engine.step()
    while not engine.idle:
        engine.step()
    return sequences


def assert_same(found: list[Sequence], expected: list[Sequence]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert ours.finish_reason == theirs.finish_reason


SIZES = [(3, 12), (1, 2), (9, 12), (2, 44), (17, 5), (5, 25), (1, 9), (40, 20), (2, 3), (7, 31)]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_graphs_give_the_tokens_of_plain_decoding(llama: Llama, rows: int) -> None:
    recorders = Recorders()
    found = answers(engine_of(llama, rows, recorders), SIZES)
    assert_same(found, answers(engine_of(llama, rows), SIZES))
    assert recorders.replays > 30
    assert len(recorders.made) > 1  # the cache grew
    shapes = {shape[0] for made in recorders.made for shape in made}
    assert shapes <= {1, 2, 4, rows}
    assert rows in shapes


def test_a_graph_for_each_number_of_rows_and_of_positions(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = []
    forward = llama.model.forward

    def record(tokens: torch.Tensor, start_pos: object, **kwargs: object) -> torch.Tensor:
        if isinstance(start_pos, torch.Tensor):
            windows.append((*tokens.shape, kwargs["cache"].seq_len))  # type: ignore[attr-defined]
        return forward(tokens, start_pos, **kwargs)

    monkeypatch.setattr(llama.model, "forward", record)
    engine = engine_of(llama, 3, lambda _: lambda step: step)
    forced = SamplingParams(temperature=0, logit_bias={7: 1e4})
    for _ in range(3):
        engine.add(Sequence([5] * 5, 40, forced))
    while not engine.idle:
        engine.step()
    # Positions 5 to 43 are run: keys 6 to 44.
    assert windows == [(3, 1, 8)] * 3 + [(3, 1, 16)] * 8 + [(3, 1, 32)] * 16 + [(3, 1, 64)] * 12
    assert set(engine._runner.decoder._graphs._graphs) == {(3, 8), (3, 16), (3, 32), (3, 64)}


def test_the_next_step_runs_before_tokens_are_looked_at(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    read_later = model_runner.read_later

    def record(*tensors: torch.Tensor) -> Callable[[], list[list[float]]]:
        read = read_later(*tensors)
        return lambda: (order.append("read"), read())[1]

    monkeypatch.setattr(model_runner, "read_later", record)
    engine = engine_of(llama, 2, lambda _: lambda step: lambda: (order.append("run"), step())[1])
    engine.add(Sequence([5, 6], 3))
    engine.step()
    assert order == ["run", "read"]
    late = engine.add(Sequence([8], 2))
    engine.step()  # the prelaunched step is used, and none is started while a prompt is to be run
    assert order == ["run", "read", "read", "read"]
    assert len(late.tokens) == 1
    engine.step()  # both at their ends: nothing is left to be run
    assert engine.idle
    assert order == ["run", "read", "read", "read", "run", "read"]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_stop_is_seen_when_the_next_step_has_begun(llama: Llama, rows: int) -> None:
    """Each stops somewhere else, at a token or a string, and others take its row."""

    def run(recorder: Callable | None) -> list[Sequence]:
        engine = engine_of(llama, rows, recorder)
        stop = next(iter(llama.tokenizer.stop_tokens))
        found = []
        for seed in range(9):
            params = SamplingParams(temperature=1, top_p=1.0, seed=seed, logit_bias={stop: 3.0})
            found.append(engine.add(Sequence([seed + 1] * (seed + 1), 30, params, stop=("e",))))
        while not engine.idle:
            engine.step()
        return found

    expected = run(None)
    assert {s.finish_reason for s in expected} == {"stop"}
    assert len({len(s.tokens) for s in expected}) > 3
    assert_same(run(Recorders()), expected)


def test_cancelled_while_the_next_step_runs(llama: Llama) -> None:
    seeded = SamplingParams(seed=3)
    engine = engine_of(llama, 2, Recorders())
    first, second = engine.add(Sequence([5, 6], 9)), engine.add(Sequence([7], 9, seeded))
    engine.step()
    engine.cancel(first)
    while not engine.idle:
        engine.step()
    alone = engine_of(llama, 2)
    expected = alone.add(Sequence([7], 9, seeded))
    while not alone.idle:
        alone.step()
    assert first.finish_reason == "cancelled"
    assert_same([second], [expected])

    third, fourth = engine.add(Sequence([5, 6], 9)), Sequence([7], 9, seeded)
    engine.step()
    engine.cancel(third)  # nothing runs any more, though a step was started
    engine.add(fourth)
    while not engine.idle:
        engine.step()
    assert_same([fourth], [expected])


def test_rows_that_do_not_run_are_padding(llama: Llama) -> None:
    graphs = DecodeGraphs(llama.model, Recorders())
    cache = llama.model.new_cache(5, 64)
    cache.k.fill_(0.5)
    graphs.use(cache)
    with torch.no_grad():
        logits = graphs.run(torch.tensor([3, 4, 5]), [2, 7, 0])
    assert logits is not None
    assert logits.shape == (3, llama.model.vocab_size)
    changed = (cache.k != 0.5).any(-1).any(0).any(1)  # (batch, positions)
    assert changed.nonzero().tolist() == [[0, 2], [1, 7], [2, 0], [3, 0]]


def test_where_nothing_can_be_recorded_decoding_goes_on_plainly(
    llama: Llama, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def refuse(step: Step) -> Step:
        calls.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    engine = engine_of(llama, 3, lambda _: refuse)
    assert_same(answers(engine, SIZES), answers(engine_of(llama, 3), SIZES))
    assert len(calls) == 1
    assert capsys.readouterr().err == (
        "no CUDA graphs, decoding is slower: operation not permitted when stream is capturing\n"
    )


def test_a_weight_that_is_assigned_is_used(llama: Llama) -> None:
    recorders = Recorders()
    engine = engine_of(llama, 3, recorders)
    answers(engine, SIZES[:2])
    weight = llama.model.output.weight
    weight.data = weight.data.flip(0).clone()
    recorded = sum(map(len, recorders.made))
    assert_same(answers(engine, SIZES[:2]), answers(engine_of(llama, 3), SIZES[:2]))
    assert sum(map(len, recorders.made)) > recorded  # graphs of before read the old weight
    recorded = sum(map(len, recorders.made))
    llama.model.output.weight = torch.nn.Parameter(weight.data.clone())
    answers(engine, SIZES[:2])
    assert sum(map(len, recorders.made)) > recorded
    recorded = sum(map(len, recorders.made))
    llama.model.output.weight.data *= 2  # in place: the graphs read that
    answers(engine, SIZES[:2])
    assert sum(map(len, recorders.made)) == recorded


@pytest.mark.parametrize("allowed", [True, False])
def test_graphs_can_be_switched_off(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """For a model whose forward pass can't be recorded, as that of FSDP with its collectives."""
    recorders, expected = Recorders(), answers(engine_of(llama, 3), SIZES)
    monkeypatch.setattr(decoding, "graphs_run_on", lambda device: True)
    monkeypatch.setattr(decoding, "DecodeGraphs", lambda model: DecodeGraphs(model, recorders))
    engine = engine_of(llama, 3)
    engine._runner.decoder = BatchDecoder(llama.model, 3, 64, allowed)
    assert_same(answers(engine, SIZES), expected)
    assert bool(recorders.replays) == allowed


def test_graphs_run_on_a_gpu_that_has_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_graphs.graphs_run_on(torch.device("cuda"))
    assert not cuda_graphs.graphs_run_on(torch.device("cpu"))
    monkeypatch.setattr(distributed, "model_parallel_size", lambda: 2)
    assert not cuda_graphs.graphs_run_on(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_tokens_of_plain_decoding(checkpoint: Path) -> None:
    llama = Llama.build(checkpoint, max_batch_size=5, device="cuda", dtype="float32")
    engine = engine_of(llama, 5)
    found = answers(engine, SIZES)
    assert engine._runner.decoder._graphs is not None
    assert not engine._runner.decoder._graphs._failed
    assert engine._runner.decoder._graphs._graphs

    def refuse(step: Step) -> Step:
        raise RuntimeError("for comparison")

    assert_same(found, answers(engine_of(llama, 5, lambda _: refuse), SIZES))
