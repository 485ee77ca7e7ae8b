"""Checkpoints of random numbers: a shape without weights runs as fast as its model."""

import base64
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from llama import console
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.meta_layout import write_params
from llama.errors import InputError
from llama.storage.tensor_files import Entry, write_tensors

_BLOCK = 2**24  # numbers that are made at a time


def write_random_checkpoint(folder: str | Path, args: ModelArgs, tied: bool) -> None:
    """Writes a checkpoint of that shape: Meta's layout, bfloat16, no tokenizer.

    `tied`: the output layer is the embedding, and stored once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    entries: dict[str, Entry] = {}
    for seed, (name, shape) in enumerate(weight_shapes(args).items()):
        entries[name] = Entry(torch.bfloat16, shape, functools.partial(_blocks, shape, seed))
    if tied:
        entries["output.weight"] = entries["tok_embeddings.weight"]
    total = sum(entry.nbytes for entry in dict.fromkeys(entries.values()))
    with console.progress(total, f"Making {folder}") as bar:
        write_tensors(folder / "consolidated.00.pth", entries, bar.update)
    (folder / "params.json").write_text(json.dumps(write_params(args)))


def _blocks(shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    if len(shape) == 1:
        yield torch.ones(shape, dtype=torch.bfloat16)
        return
    rows, inputs = shape
    generator = torch.Generator().manual_seed(seed)
    step = max(_BLOCK // inputs, 1)
    for start in range(0, rows, step):
        block = torch.empty(min(step, rows - start), inputs)
        yield block.normal_(0, 0.02, generator=generator).bfloat16()


def write_made_up_tokenizer(path: str | Path, vocab_size: int) -> None:
    """Writes a tokenizer.model of so many tokens, for a checkpoint that has none."""
    if vocab_size < 512:
        raise InputError(
            f"no tokenizer can be made up for {vocab_size} tokens: bytes and special tokens are "
            "512; put the checkpoint's own tokenizer.model into its folder"
        )
    tokens = [bytes([i]) for i in range(256)] + [b"%07d" % i for i in range(vocab_size - 512)]
    lines = (b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    Path(path).write_bytes(b"".join(lines))
