"""What the engine saves: prompts that begin alike, and answers that copy from their prompt.

    python -m benchmarks.engine [--rounds 5] [--shape params/Llama-3.2-1B]

Time to the first token of a prompt whose first 1,500 tokens an earlier prompt had, with the prefix
store and without it, and the pauses of a stream while a long prompt arrives, on random weights of a
shape. Then decoding with guesses and without, on the
bundled model's answers from facts in its context, and on text without repetition, where guesses
don't help; beside llama.cpp with its own prompt lookup, where llama-cpp-python and gguf are
installed. All in turns, medians. The last line is one JSON object.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cyclopts
import torch
from cyclopts.types import PositiveInt

from llama import Engine, Llama, SamplingParams, Sequence
from llama.checkpoint.info import read_facts
from llama.cli import one_line_errors
from llama.console import table
from llama.evaluation.random_checkpoint import prepare

ROOT = Path(__file__).parents[1]
NAMES = "Mia Tom Lily Ben Anna Max Sue Tim".split()
TOWNS = "Oslo Lima Rome Paris Cairo Delhi Quito Bern".split()
QUESTIONS = [f"What do you know about {name}?" for name in NAMES]


def first_token(llama: Llama, engine: Engine, prompt: list[int]) -> float:
    """Seconds to the first token."""
    start = time.perf_counter()
    sequence = engine.add(Sequence(prompt, 1, SamplingParams(temperature=0)))
    while not engine.idle:
        engine.step()
    assert sequence.error is None
    return time.perf_counter() - start


def measure_prefix(
    llama: Llama, rounds: int, shared: int = 1500, own: int = 20
) -> dict[str, float]:
    """Seconds to the first token with a cold store, a warm one and none."""
    size = llama.tokenizer.n_words - 256
    common = torch.randint(size, (shared,)).tolist()

    def prompt() -> list[int]:
        return common + torch.randint(size, (own,)).tolist()

    times: dict[str, list[float]] = {"without a store": [], "cold": [], "warm": []}
    for _ in range(rounds):
        plain = Engine(llama.model, llama.tokenizer, 1, 2048, prefix_memory=0)
        stored = Engine(llama.model, llama.tokenizer, 1, 2048)
        times["without a store"].append(first_token(llama, plain, prompt()))
        times["cold"].append(first_token(llama, stored, prompt()))
        times["warm"].append(first_token(llama, stored, prompt()))
    return {name: median(values) for name, values in times.items()}


def measure_pause(llama: Llama, prompt_length: int = 4096) -> dict[str, float]:
    """Seconds between the tokens of a stream while a prompt arrives, and of one chunk."""
    size = llama.tokenizer.n_words - 256
    engine = Engine(llama.model, llama.tokenizer, 2, 5120, prefix_memory=0)
    stops = dict.fromkeys(llama.tokenizer.stop_tokens, -float("inf"))
    params = SamplingParams(temperature=0, logit_bias=stops)
    stream = engine.add(Sequence(torch.randint(size, (16,)).tolist(), 500, params, speculate=False))
    engine.step()

    def steps(until: Callable[[], bool]) -> list[float]:
        times = []
        while not until():
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        return times

    quiet = steps(lambda: len(stream.tokens) >= 32)
    late = engine.add(Sequence(torch.randint(size, (prompt_length,)).tolist(), 1, params))
    pauses = steps(lambda: late.finish_reason is not None)
    engine.cancel(stream)
    alone = Engine(llama.model, llama.tokenizer, 1, 5120, prefix_memory=0)
    alone.add(Sequence(late.prompt, 1, params))
    chunks = []
    while not alone.idle:
        start = time.perf_counter()
        alone.step()
        chunks.append(time.perf_counter() - start)
    return {"step": median(quiet), "chunk": max(chunks), "longest_pause": max(pauses)}


def prompts(llama: Llama) -> dict[str, list[list[int]]]:
    """Prompts whose answers copy from them, and one whose answer does not."""
    facts = " ".join(
        f"{name} lives in {town}. {name} has {i + 3} dogs. {name} likes to swim."
        for i, (name, town) in enumerate(zip(NAMES, TOWNS, strict=True))
    )
    dialogs: list[Any] = [
        [{"role": "system", "content": f"Facts:\n{facts}"}, {"role": "user", "content": question}]
        for question in QUESTIONS
    ]
    encode = llama.formatter.encode_dialog_prompt
    story = "Once upon a time there was a little dog named Max. Max liked to play in the park."
    return {
        "facts from the context": [encode(dialog) for dialog in dialogs],
        "a story": [llama.tokenizer.encode(story, bos=True)],
    }


def decode(llama: Llama, ids: list[int], speculate: bool) -> tuple[float, int, list[int]]:
    """Seconds after the first token, tokens after it, and all tokens."""
    engine = Engine(llama.model, llama.tokenizer, 1, 1024, prefix_memory=0)
    params = SamplingParams(temperature=0)
    sequence = engine.add(Sequence(ids, 200, params, speculate=speculate))
    while not sequence.tokens and not engine.idle:
        engine.step()
    start, begun = time.perf_counter(), len(sequence.tokens)
    while not engine.idle:
        engine.step()
    return time.perf_counter() - start, len(sequence.tokens) - begun, sequence.tokens


def measure_guesses(llama: Llama, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second with guesses and without, for each kind of prompt."""
    figures = {}
    for name, ids in prompts(llama).items():
        rates: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(rounds + 1):  # the first warms up
            for speculate in (True, False):
                found = [decode(llama, each, speculate) for each in ids]
                if turn:
                    rates[speculate].append(
                        sum(n for _, n, _ in found) / sum(t for t, _, _ in found)
                    )
        ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
        figures[name] = {
            "guesses": median(rates[True]),
            "plain": median(rates[False]),
            "ratio": median(ratios),
        }
    return figures


def measure_llama_cpp(llama: Llama, rounds: int) -> dict[str, dict[str, float]]:
    """The same by llama.cpp, with and without its own prompt lookup."""
    from llama_cpp import Llama as LlamaCpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    from benchmarks.gguf_files import write_gguf
    from llama.checkpoint.opening import open_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tiny.gguf"
        write_gguf(open_checkpoint(ROOT / "params" / "tiny"), path)
        draft = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=8)
        models: dict[str, Any] = {
            "guesses": LlamaCpp(
                path, n_ctx=1024, draft_model=draft, logits_all=True, verbose=False
            ),
            "plain": LlamaCpp(path, n_ctx=1024, verbose=False),
        }
        stops = llama.tokenizer.stop_tokens

        def run(model: Any, ids: list[int]) -> tuple[float, int]:
            count, start = 0, 0.0
            for token in model.generate(ids, temp=0.0, reset=True):
                if not count:
                    start = time.perf_counter()
                if token in stops or count == 200:
                    break
                count += 1
            return time.perf_counter() - start, max(count - 1, 0)

        figures = {}
        for name, ids in prompts(llama).items():
            rates: dict[str, list[float]] = {"guesses": [], "plain": []}
            for turn in range(rounds + 1):
                for kind, model in models.items():
                    found = [run(model, each) for each in ids]
                    if turn:
                        rates[kind].append(sum(n for _, n in found) / sum(t for t, _ in found))
            ratios = [a / b for a, b in zip(rates["guesses"], rates["plain"], strict=True)]
            figures[name] = {kind: median(values) for kind, values in rates.items()}
            figures[name]["ratio"] = median(ratios)
    return figures


def main(
    rounds: PositiveInt = 5,
    shape: str = str(ROOT / "params" / "Llama-3.2-1B"),
    dtype: str = "bfloat16",
) -> None:
    """Prints seconds to the first token, and tokens per second.

    Args:
        rounds: how many times each takes its turn.
        shape: of the model for the first part, with or without weights.
        dtype: of the bundled model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, tokenizer = prepare(read_facts(shape), shape, folder)
        large = Llama.build(path, tokenizer, max_seq_len=5120, max_batch_size=2)
        prefix = measure_prefix(large, rounds)
        pause = measure_pause(large)
        del large
    print(table([["first token after 1,500 shared tokens", "ms"]]))
    print(table([[name, f"{seconds * 1e3:.1f}"] for name, seconds in prefix.items()]))
    print(table([["a stream while 4,096 tokens arrive", "ms"]]))
    print(table([[name, f"{seconds * 1e3:.1f}"] for name, seconds in pause.items()]))
    llama = Llama.build(ROOT / "params" / "tiny", dtype=dtype, device="cpu", max_batch_size=1)
    measures: dict[str, Callable[[Llama, int], dict[str, dict[str, float]]]] = {
        "llama": measure_guesses
    }
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401

        measures["llama.cpp"] = measure_llama_cpp
    except ImportError:
        pass
    guesses = {name: measure(llama, rounds) for name, measure in measures.items()}
    rows = [["tokens per second", "guesses", "plain", "ratio"]]
    for backend, figures in guesses.items():
        for task, values in figures.items():
            rows.append([f"{backend}: {task}", *(f"{value:.2f}" for value in values.values())])
    print(table(rows))
    print(json.dumps({"first_token_seconds": prefix, "pause_seconds": pause, "guesses": guesses}))


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
