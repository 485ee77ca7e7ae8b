"""Checkpoints of random numbers: a shape without weights runs as fast as its model.

Each row of a matrix has normal numbers with a spread of its own, 0.02 times e to a normal number of
standard deviation `_ROW_SPREAD`, as in trained matrices: those of an embedding model of 22 million
weights have 0.1 to 0.27. The bundled model's have 0.28 without the rows of the one in ten
feed-forward units that training has made nearly zero. bf12's escapes depend on it.
"""

import base64
import functools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from llama import console
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.info import Facts
from llama.checkpoint.meta_layout import write_params
from llama.errors import InputError
from llama.storage.files import expand, short_size
from llama.storage.tensor_files import Entry, write_tensors

_ROW_SPREAD = 0.2


def prepare(facts: Facts, path: str, folder: str) -> tuple[str, str | None]:
    """The paths of a checkpoint, and of a tokenizer if it lacks one; makes both in `folder`.

    Files are read once, so that no model waits for the disk where the next one does not.
    """
    if facts.checkpoint is None:
        size, free = 2 * facts.parameters(), shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"random weights take {short_size(size)}, and {folder} has {short_size(free)} "
                "left; make room, or set TMPDIR to a folder on another disk"
            )
        console.notice(f"{facts.source} has no weights: making random ones, {short_size(size)}")
        path = f"{folder}/model"
        write_random_checkpoint(path, facts.args, bool(facts.tied))
    tokenizer = None
    if facts.checkpoint is None or facts.checkpoint.tokenizer is None:
        tokenizer = f"{folder}/tokenizer.model"
        write_made_up_tokenizer(tokenizer, facts.args.vocab_size)
    for file in Path(expand(path)).glob("*.*"):
        with file.open("rb") as stream, open(os.devnull, "wb") as nowhere:
            shutil.copyfileobj(stream, nowhere)
    return path, tokenizer


def write_random_checkpoint(folder: str | Path, args: ModelArgs, tied: bool) -> None:
    """Writes a checkpoint of that shape: Meta's layout, bfloat16, no tokenizer.

    `tied`: the output layer is the embedding, and stored once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    entries: dict[str, Entry] = {}
    for seed, (name, shape) in enumerate(weight_shapes(args).items()):
        entries[name] = Entry(torch.bfloat16, shape, functools.partial(_weight, shape, seed))
    if tied:
        entries["output.weight"] = entries["tok_embeddings.weight"]
    total = sum(entry.nbytes for entry in dict.fromkeys(entries.values()))
    with console.progress(total, f"Making {folder}") as bar:
        write_tensors(folder / "consolidated.00.pth", entries, bar.update)
    (folder / "params.json").write_text(json.dumps(write_params(args)))


def _weight(shape: tuple[int, ...], seed: int) -> Iterable[Tensor]:
    weight = torch.ones(shape, dtype=torch.bfloat16)
    if len(shape) > 1:
        generator = torch.Generator().manual_seed(seed)
        weight.normal_(0, 0.02, generator=generator)
        weight *= torch.empty(shape[0], 1).normal_(0, _ROW_SPREAD, generator=generator).exp_()
    yield weight


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
