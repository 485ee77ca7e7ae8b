"""How fast training is, beside a plain loop over transformers' model.

    python benchmarks/training.py [--rounds 5] [--steps 4]

A model of 30 million parameters with random weights, the same batches (rows of one document each),
AdamW and clipping on both sides, in one process, in turns. Products are in bfloat16 over float32
weights, or where the processor has none in float32. Beside bfloat16 transformers also runs with its
weights in bfloat16 themselves, which is less work and learns worse. Before that come the machine's
matrix rate and, with 6 operations a parameter and token, the share of it that each reaches. The
last line is one JSON object. Needs transformers.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llama import distributed
from llama.args import ModelArgs
from llama.distributed.hardware_peak import matrix_rate
from llama.training.config import TrainConfig
from llama.training.packing import Batch
from llama.training.trainee import Trainee, keep_freed_memory

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


def ours(tokens: torch.Tensor, document: int) -> Callable[[], None]:
    trainee = Trainee(SHAPE, None, TrainConfig(), torch.device("cpu"))
    seq = tokens.shape[1] - 1
    positions = (torch.arange(seq) % document).expand(len(tokens), seq)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], positions)

    def step() -> None:
        trainee.step([batch], 1e-3, tokens[:, 1:].numel())

    return step


def theirs(
    tokens: torch.Tensor, products: torch.dtype, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
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
        with torch.autocast("cpu", torch.bfloat16, enabled=products != dtype):
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def main(rounds: int = 5, steps: int = 4, rows: int = 8, seq_len: int = 512) -> None:
    """Prints tokens per second of each.

    Args:
        rounds: turns of all contenders.
        steps: of each in its turn.
        rows: of a batch.
        seq_len: tokens of a row.
    """
    keep_freed_memory()
    distributed.initialize()
    products = TrainConfig().products(torch.device("cpu"))
    tokens = torch.randint(SHAPE.vocab_size, (rows, seq_len + 1))
    contenders = {
        "llama": ours(tokens, seq_len),
        "llama, documents of 128 tokens": ours(tokens, 128),
        "transformers": theirs(tokens, products),
    }
    if products == torch.bfloat16:
        contenders["transformers, weights in bfloat16"] = theirs(tokens, products, products)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    ceilings = []
    for step in contenders.values():
        step()
    for _ in range(rounds):
        ceilings.append(matrix_rate(torch.device("cpu"), products))
        for name, step in contenders.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            rates[name].append(steps * rows * seq_len / (time.perf_counter() - start))
    parameters = sum(
        p.numel() for p in Trainee(SHAPE, None, TrainConfig(), torch.device("cpu")).parameters
    )
    ceiling = statistics.median(ceilings)
    print(
        f"{parameters / 1e6:.1f}M parameters, batches of {rows} x {seq_len} tokens, "
        f"{torch.get_num_threads()} threads; the machine multiplies {ceiling / 1e12:.2f} TFLOP/s "
        f"in {str(products).removeprefix('torch.')}"
    )
    result: dict[str, Any] = {"parameters": parameters, "matrix_rate": ceiling}
    result["products"] = str(products)
    for name, each in rates.items():
        ratio = statistics.median(a / b for a, b in zip(each, rates["transformers"], strict=True))
        speed = statistics.median(each)
        share = speed * 6 * parameters / ceiling
        print(f"{name:36}{speed:9,.0f} tokens/s   x {ratio:4.2f}   {share:4.0%} of the matrix rate")
        result[name] = {"tokens_per_second": each, "ratio": ratio, "share": share}
    print(json.dumps(result))


if __name__ == "__main__":
    fire.Fire(main)
