"""Tokens per second while decoding on a CPU, beside transformers and what the memory allows.

    python benchmarks/decode.py [--folder DIR] [--rounds 5] [--tokens 16]

A checkpoint of random numbers in Llama 3.2 1B's shape (1.24B parameters, bfloat16) is decoded
greedily from prompts of 4 tokens, by each in turn in the same process, A B C D A B C D ...; a rate
is that of the tokens after the first, and x is its ratio to transformers in the same round. Beside
it, the speed at which torch sums 2 GB, and the share of it at which weights are read at batch 1.
The last line is one JSON object.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama import Llama
from llama.convert import convert

BYTES = {"bfloat16": 2.0, "int8": 8.5 / 8, "int4": 4.5 / 8, "transformers": 2.0}


def seconds(generate: Callable[[int], object], tokens: int) -> float:
    """What `tokens` more take than one does."""
    start = time.perf_counter()
    generate(1)
    first = time.perf_counter()
    generate(tokens + 1)
    return (time.perf_counter() - first) - (first - start)


def read_speed() -> float:
    """Bytes a second, the best of five."""
    numbers = torch.ones(2**28, dtype=torch.float64)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best


def main(folder: str | None = None, rounds: int = 5, tokens: int = 16) -> None:
    """Makes the checkpoint in `folder`, else in a temporary one, and decodes from it."""
    from random_checkpoint import make
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        meta, hf = Path(folder or temporary, "meta-1b"), Path(folder or temporary, "hf-1b")
        if not hf.exists():
            make(meta, tied=True)
            convert(str(meta), str(hf), "hf")
        models = {}
        for name in ("bfloat16", "int8", "int4"):
            quantize = None if name == "bfloat16" else name
            models[name] = Llama.build(
                meta, dtype="bfloat16", device="cpu", quantize=quantize, max_seq_len=128
            )
        theirs: Any = LlamaForCausalLM.from_pretrained(hf, dtype=torch.bfloat16)
        rates: dict[str, dict[str, list[float]]] = {}
        for batch in (1, 8):
            prompts = [[1, 2, 3, 4 + i] for i in range(batch)]
            ids = torch.tensor(prompts)

            def transformers(count: int, ids: torch.Tensor = ids) -> None:
                theirs.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=count,
                    max_new_tokens=count,
                    pad_token_id=0,
                )

            runs: dict[str, Callable[[int], object]] = {
                name: lambda count, m=model, p=prompts: m.generate(p, count, temperature=0)  # type: ignore[misc]
                for name, model in models.items()
            }
            runs["transformers"] = transformers
            found: dict[str, list[float]] = {name: [] for name in runs}
            for name in runs:
                runs[name](2)
            for _ in range(rounds):
                for name, generate in runs.items():
                    found[name].append(batch * tokens / seconds(generate, tokens))
            rates[str(batch)] = found
        speed = read_speed()
    args = models["bfloat16"].model.params
    embedding = args.vocab_size * args.dim
    matrices = sum(w.numel() for w in models["bfloat16"].model.parameters()) - embedding
    print(f"torch sums {speed / 1e9:.1f} GB/s on {torch.get_num_threads()} threads\n")
    print(f"{'':14}{'batch 1':>9}{'x':>6}{'share':>7}{'batch 8':>9}{'x':>6}")
    table = {}
    for name in BYTES:
        one, eight = rates["1"][name], rates["8"][name]
        ratios = [
            statistics.median(a / b for a, b in zip(found, base, strict=True))
            for found, base in (
                (one, rates["1"]["transformers"]),
                (eight, rates["8"]["transformers"]),
            )
        ]
        medians = statistics.median(one), statistics.median(eight)
        share = medians[0] * matrices * BYTES[name] / speed
        print(
            f"{name:14}{medians[0]:9.1f}{ratios[0]:6.2f}{share:7.0%}{medians[1]:9.1f}{ratios[1]:6.2f}"
        )
        table[name] = {"batch 1": medians[0], "batch 8": medians[1], "ratios": ratios}
    print(json.dumps({"torch": torch.__version__, "read": speed, "decode": table}))


if __name__ == "__main__":
    fire.Fire(main)
