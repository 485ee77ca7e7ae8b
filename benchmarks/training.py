"""How fast training is: with native kernels, without them, and beside transformers.

    python -m benchmarks.training [--rounds 5] [--steps 4]

A model of 30 million parameters with random weights, the same batches (rows of one document each),
AdamW and clipping in all, each in a process of its own, in turns, A B A B ... "without kernels" is
the same trainer under LLAMA_KERNELS=off. Products are in bfloat16 over float32 weights, or where
the processor has none in float32. transformers also runs with its weights in bfloat16 themselves,
which is less work and learns worse. The share is that of the machine's matrix rate, with 6
operations a parameter and token. The last line is one JSON object. Needs transformers.
"""

import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cyclopts
import torch
from cyclopts.types import PositiveInt

from llama import distributed
from llama.args import ModelArgs, weight_shapes
from llama.cli import one_line_errors
from llama.console import table
from llama.distributed.hardware_peak import matrix_rate
from llama.training.config import TrainConfig
from llama.training.packing import Batch
from llama.training.trainable_model import TrainableModel, keep_freed_memory

SHAPE = ModelArgs(
    dim=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=4,
    vocab_size=8192,
    multiple_of=256,
    rope_theta=500000.0,
    max_seq_len=2048,
)


PRODUCTS = TrainConfig().compute_dtype(torch.device("cpu"))  # the dtype of matrix products


def ours(tokens: torch.Tensor, document: int) -> Callable[[], None]:
    """A step of this project's trainer; `tokens` (rows, seq + 1) in documents of that length."""
    keep_freed_memory()
    distributed.initialize()
    trainable = TrainableModel(SHAPE, None, TrainConfig(), torch.device("cpu"))
    seq = tokens.shape[1] - 1
    positions = (torch.arange(seq) % document).expand(len(tokens), seq)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], positions)

    def step() -> None:
        trainable.step([batch], 1e-3, tokens[:, 1:].numel())

    return step


def theirs(tokens: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """A step of a plain loop over transformers' model, its weights in `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=SHAPE.dim,
        num_hidden_layers=SHAPE.n_layers,
        num_attention_heads=SHAPE.n_heads,
        num_key_value_heads=SHAPE.kv_heads,
        intermediate_size=SHAPE.hidden_dim,
        vocab_size=SHAPE.vocab_size,
        max_position_embeddings=SHAPE.max_seq_len,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != PRODUCTS):
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


BACKENDS: dict[str, tuple[str, Callable[..., Callable[[], None]], Any]] = {
    # LLAMA_KERNELS, and how a step is made
    "llama": ("native", ours, None),
    "llama, without kernels": ("off", ours, None),
    "llama, documents of 128 tokens": ("native", ours, 128),
    "llama, documents of 128 tokens, without kernels": ("off", ours, 128),
    "transformers": ("native", theirs, torch.float32),
    "transformers, weights in bfloat16": ("native", theirs, torch.bfloat16),
}


def serve(name: str, rows: int, seq_len: int, threads: int, pipe: Connection) -> None:
    """In a process of its own: makes the steps it is asked for and answers how long they took."""
    kernels, make, argument = BACKENDS[name]
    os.environ["LLAMA_KERNELS"] = kernels
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens = torch.randint(SHAPE.vocab_size, (rows, seq_len + 1))
    step = make(tokens, argument or seq_len)
    step()
    pipe.send(None)
    while steps := pipe.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send(time.perf_counter() - start)


def main(
    rounds: PositiveInt = 5,
    steps: PositiveInt = 4,
    rows: PositiveInt = 8,
    seq_len: PositiveInt = 512,
) -> None:
    """Prints tokens per second of each.

    Args:
        rounds: how many times each takes its turn.
        steps: of each in its turn.
        rows: of a batch.
        seq_len: tokens of a row.
    """
    names = [name for name in BACKENDS if "in bfloat16" not in name or torch.bfloat16 == PRODUCTS]
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], theirs_ = spawn.Pipe()
        arguments = (name, rows, seq_len, torch.get_num_threads(), theirs_)
        spawn.Process(target=serve, args=arguments, daemon=True).start()
        pipes[name].recv()
    rates: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for _ in range(rounds):
        peaks.append(matrix_rate(torch.device("cpu"), PRODUCTS))
        for name, pipe in pipes.items():
            pipe.send(steps)
            rates[name].append(steps * rows * seq_len / pipe.recv())
    for pipe in pipes.values():
        pipe.send(0)
    shapes = weight_shapes(SHAPE)
    del shapes["output.weight"]  # tied
    parameters, peak = sum(map(math.prod, shapes.values())), statistics.median(peaks)
    print(
        f"{parameters / 1e6:.1f}M parameters, batches of {rows} x {seq_len} tokens, "
        f"{torch.get_num_threads()} threads; hardware peak {peak / 1e12:.2f} TFLOP/s "
        f"in {str(PRODUCTS).removeprefix('torch.')}\n"
    )
    results: dict[str, dict[str, Any]] = {}
    table_rows = [["", "tokens/s", "x without kernels", "x transformers", "of peak"]]
    for name, each in rates.items():
        speed = statistics.median(each)
        bases = {"x without kernels": f"{name}, without kernels", "x transformers": "transformers"}
        ratios = {
            label: statistics.median(a / b for a, b in zip(each, rates[base], strict=True))
            for label, base in bases.items()
            if base in rates
        }
        share = speed * 6 * parameters / peak
        results[name] = {"tokens_per_second": each, **ratios, "share": share}
        cells = (f"{ratios[label]:.2f}" if label in ratios else "" for label in bases)
        table_rows.append([name, f"{speed:,.0f}", *cells, f"{share:.0%}"])
    print(table(table_rows))
    print(
        json.dumps(
            {
                "parameters": parameters,
                "peak": peak,
                "products": str(PRODUCTS),
                "torch": torch.__version__,
                "backends": results,
            }
        )
    )


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
