"""Random schedules of requests against each request alone: equal to the last bit.

    python tests/engine/random_schedules.py --seconds 3600 --seed 7

Submissions from several threads, cancellations, requests that fail, grammars, penalties, guesses,
embeddings, tiny memory budgets, prefix stores and small chunks go on around each other. What each
request gives is compared with what it gives alone in an engine of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from llama import Engine, Llama, SamplingParams, Sequence
from llama.engine import Grammar
from llama.lora.adapter_layers import LoraConfig, add_lora, lora_parameters, save_adapter

TINY = Path(__file__).parents[2] / "params" / "tiny"
CHUNK = 32
FORMATS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}
BEGINNINGS = (
    "Once upon a time there was a little girl named Lily. She liked to play in the park. " * 3,
    "One day, a bird and a cat met in the garden. The bird said hello to the cat. " * 4,
    "Facts:\nMia lives in Oslo. Tom lives in Lima.\nWhere does Tom live? Where does Mia live?",
)


def build(name: str) -> Llama:
    """The bundled model with an adapter of random numbers beside it."""
    plain = Llama.build(TINY, device="cpu", dtype="float32")
    add_lora(plain.model, LoraConfig(r=4, targets=("wq", "w2")))
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(plain.model):
        parameter.data.normal_(std=0.1, generator=generator)
    llama = Llama.build(TINY, max_seq_len=256, device="cpu", **FORMATS[name])
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(plain.model, folder)
        llama.engine.load_adapter("polite", folder)
    return llama


class Break(Exception):
    """What a request raises that is meant to fail."""


def request(rng: random.Random, llama: Llama) -> Sequence:
    """A request, sometimes one that fails."""
    tokens = llama.tokenizer.encode(rng.choice(BEGINNINGS), bos=True)
    prompt = tokens[: rng.randint(1, min(len(tokens), 200))]
    if rng.random() < 0.3:
        prompt = prompt + [rng.randrange(1000) for _ in range(rng.randint(1, 10))]
    settings = {"temperature": rng.choice((0.0, 0.7, 1.3)), "seed": rng.randrange(100)}
    if rng.random() < 0.3:
        settings["top_p"] = 1.0
    if rng.random() < 0.2:
        settings |= {"repetition_penalty": 1.2, "frequency_penalty": 0.3}
    if rng.random() < 0.1:
        settings["logit_bias"] = {i: -float("inf") for i in range(llama.tokenizer.n_words)}
    options = {}
    if rng.random() < 0.15:
        options["grammar"] = Grammar(regex=rng.choice(("[a-z ]{5,20}[.]", "(yes|no), [0-9]{2,5}")))
    elif rng.random() < 0.2:
        options |= {"min_tokens": rng.randint(1, 8)}
    elif rng.random() < 0.2:
        options |= {"ignore_eos": True}
    if rng.random() < 0.2:
        options["stop"] = (rng.choice((" the", ".", "l")),)
    if rng.random() < 0.15:
        options |= {"score_prompt": True, "top_logprobs": 2}
    options["adapter"] = rng.choice((None, None, None, "polite"))
    options["priority"] = rng.choice((0, 0, 0, 1))
    if rng.random() < 0.1:
        start = rng.randrange(len(prompt))
        return Sequence(prompt, 0, pool_from=start, **options)
    if options.get("score_prompt") and rng.random() < 0.5:
        options["score_from"] = rng.randrange(len(prompt))
    options["speculate"] = rng.random() < 0.8
    return Sequence(prompt, rng.randint(1, 40), SamplingParams(**settings), **options)


def outcome(sequence: Sequence) -> tuple:
    return (
        sequence.tokens,
        sequence.logprobs,
        sequence.text,
        sequence.finish_reason,
        str(sequence.error or ""),
        sequence.prompt_logprobs,
        None if sequence.embedding is None else sequence.embedding.tolist(),
        sequence.likeliest,
    )


def alone(llama: Llama, sequence: Sequence) -> Sequence:
    engine = Engine(llama.model, llama.tokenizer, 1, 256, chunk=CHUNK, prefix_memory=0)
    copy = Sequence(**{**sequence.request(), "speculate": False})
    engine.add(copy)
    while not engine.idle:
        engine.step()
    return copy


def run_schedule(llama: Llama, rng: random.Random, count: int) -> int:
    """Runs `count` requests around each other; AssertionError where one differs."""
    rows = rng.choice((1, 2, 4, 8))
    position_bytes = Engine(llama.model, llama.tokenizer, 1, 256).memory.position_bytes
    engine = Engine(
        llama.model,
        llama.tokenizer,
        rows,
        256,
        chunk=CHUNK,
        kv_memory=rng.choice((320, 640, 4096)) * position_bytes,
        prefix_memory=rng.choice((0, 2, 20, 200)) * CHUNK * position_bytes,
    )
    sequences = [request(rng, llama) for _ in range(count)]
    cancelled = {s for s in sequences if rng.random() < 0.1}
    problems: list[BaseException] = []

    def submit(part: list[Sequence], pauses: list[float]) -> None:
        try:
            for sequence, pause in zip(part, pauses, strict=True):
                engine.add(sequence)
                time.sleep(pause)
                if sequence in cancelled:
                    engine.cancel(sequence)
            for _ in engine.run(part):
                pass
        except BaseException as error:
            problems.append(error)

    parts = [sequences[i::3] for i in range(3)]
    threads = [
        threading.Thread(target=submit, args=(part, [rng.random() * 0.01 for _ in part]))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive(), "a request does not end"
    assert not problems, problems
    assert engine.idle
    assert engine.memory.used == 0
    for sequence in sequences:
        expected = alone(llama, sequence)
        if sequence in cancelled and sequence.finish_reason == "cancelled":
            n = len(sequence.tokens)
            assert sequence.tokens == expected.tokens[:n], sequence
            assert sequence.logprobs == expected.logprobs[:n], sequence
        else:
            assert outcome(sequence) == outcome(expected), (outcome(sequence), outcome(expected))
    return len(sequences)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--formats", default=",".join(FORMATS))
    arguments = parser.parse_args()
    print("seed", arguments.seed, flush=True)
    rng = random.Random(arguments.seed)
    models = {name: build(name) for name in arguments.formats.split(",")}
    counts = dict.fromkeys(models, 0)
    end, reported = time.monotonic() + arguments.seconds, time.monotonic()
    while time.monotonic() < end:
        for name, llama in models.items():
            seed = rng.randrange(10**9)
            try:
                counts[name] += run_schedule(llama, random.Random(seed), 24)
            except AssertionError as error:
                raise SystemExit(f"{name}, schedule {seed}: {str(error)[:3000]}") from error
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            print(counts, flush=True)
    print(f"{sum(counts.values())} requests, all equal to themselves alone: {counts}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
