"""What a busy machine costs: tokens and training steps beside two busy loops, and two at a time.

    python -m benchmarks.busy_cores

Each measurement is a process of its own, which reports how long a token of the bundled model takes
in bfloat16 and how long a training step. It runs alone, beside two busy loops pinned to two cores,
and twice at the same time, in turns. The last line is one JSON object.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import cyclopts
import torch
from cyclopts.types import PositiveInt

from llama.cli import one_line_errors
from llama.console import table

ROOT = Path(__file__).parents[1]
TINY = ROOT / "params" / "tiny"


def measure_tokens(seconds: float) -> float:
    """Seconds for a token at batch 1."""
    from llama import Engine, Llama, SamplingParams, Sequence

    llama = Llama.build(TINY, dtype="bfloat16", device="cpu", max_batch_size=1)
    stops = dict.fromkeys(llama.tokenizer.stop_tokens, -float("inf"))
    prompt = llama.tokenizer.encode("Once upon a time there was a", bos=True)
    count, start = 0, 0.0
    for run in range(10**6):
        engine = Engine(llama.model, llama.tokenizer, 1, 1024)
        params = SamplingParams(temperature=0, logit_bias=stops)
        sequence = engine.add(Sequence(prompt, 100, params, speculate=False))
        if run == 1:  # the first one compiles and warms up
            count, start = 0, time.perf_counter()
        while not engine.idle:
            engine.step()
        count += len(sequence.tokens)
        if run and time.perf_counter() - start > seconds:
            break
    return (time.perf_counter() - start) / count


def measure_training(seconds: float) -> float:
    """Seconds for a training step of 4096 tokens of the bundled model's shape."""
    from llama import distributed
    from llama.checkpoint.opening import open_checkpoint
    from llama.training.config import TrainConfig
    from llama.training.packing import Batch
    from llama.training.trainable_model import TrainableModel, keep_freed_memory

    keep_freed_memory()
    distributed.initialize()
    args = open_checkpoint(TINY).args
    trainable = TrainableModel(args, None, TrainConfig(), torch.device("cpu"))
    tokens = torch.randint(args.vocab_size, (4, 1025), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(1024).expand(4, 1024)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], positions)
    threads, count, start = distributed.adaptive_threads(), 0, 0.0
    for run in range(10**6):
        if run == 1:
            count, start = 0, time.perf_counter()
        with threads:
            trainable.step([batch], 1e-4, tokens[:, 1:].numel())
        count += 1
        if run and time.perf_counter() - start > seconds:
            break
    return (time.perf_counter() - start) / count


def one(kind: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.busy_cores", kind, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> float:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a measurement ended with status {process.returncode}")
    return float(output.split()[-1])


def beside_busy_loops(kind: str, seconds: float, cores: list[int]) -> float:
    loops = [
        subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"])
        for core in cores
    ]
    try:
        return result(one(kind, seconds))
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(rounds: PositiveInt = 3, seconds: float = 10.0) -> None:
    """Prints milliseconds for a token and for a training step.

    Args:
        rounds: how many times each situation takes its turn.
        seconds: how long each measures.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for kind in ("token", "training"):
            found = times.setdefault(kind, {"alone": [], "beside loops": [], "two at a time": []})
            found["alone"].append(result(one(kind, seconds)))
            found["beside loops"].append(beside_busy_loops(kind, seconds, cores))
            found["two at a time"] += map(result, [one(kind, seconds), one(kind, seconds)])
    summary: dict[str, dict[str, float]] = {}
    for kind, found in times.items():
        alone, busy, both = (median(values) for values in found.values())
        summary[kind] = {
            "alone_ms": alone * 1e3,
            "beside_loops_ms": busy * 1e3,
            "two_at_a_time_ms": both * 1e3,
            "slower_beside_loops": busy / alone,
            "two_to_one_throughput": 2 * alone / both,
        }
    rows = [
        [kind, *(f"{value:.2f}" for value in figures.values())] for kind, figures in summary.items()
    ]
    print(table([["ms", "alone", "busy", "two", "busy / alone", "two / one"], *rows]))
    print(json.dumps(summary))


if __name__ == "__main__":
    with one_line_errors():
        if sys.argv[1:2] in (["token"], ["training"]):
            measure = measure_tokens if sys.argv[1] == "token" else measure_training
            print(measure(float(sys.argv[2])))
        else:
            cyclopts.run(main)
