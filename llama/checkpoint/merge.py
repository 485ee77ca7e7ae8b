"""`llama merge`: adds a LoRA adapter to the weights of its model.

    llama merge Llama-3.2-1B polite Llama-3.2-1B-polite

W + (alpha / r) B A is computed in float32, block by block from file to file, and written as
`llama convert` writes. The result is an ordinary checkpoint, which can also be quantized.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llama import distributed
from llama.checkpoint.convert import new_folder, write_checkpoint
from llama.checkpoint.opening import open_checkpoint
from llama.errors import InputError
from llama.lora.adapter_files import open_adapter
from llama.storage.sharding import Region, Weight


def merge(base: str, adapter: str, destination: str, /, *, dtype: str | None = None) -> None:
    """Writes the checkpoint in one folder, with an adapter added to its weights, into another.

    Args:
        base: Folder of the checkpoint; the new one has its layout and number of shards.
        adapter: Folder of the adapter.
        destination: Folder to make.
        dtype: bfloat16, float16 or float32; default: each weight keeps its own.
    """
    target = new_folder(destination)
    wanted = None if dtype is None else distributed.select_dtype(torch.device("cpu"), dtype)
    checkpoint = open_checkpoint(base)
    if checkpoint.quantize:
        raise InputError(
            f"{base} has {checkpoint.quantize} weights, which can't be changed: merge into the "
            "model they were made from and convert the result with --quantize "
            f"{checkpoint.quantize}, or pass the adapter to Llama.build (adapter=)"
        )
    found = open_adapter(adapter, checkpoint.args)
    for layer, (a, b) in found.layers.items():
        name = f"{layer}.weight"
        old = checkpoint.weights[name]
        checkpoint.weights[name] = _Merged(
            old.shape, old.shards, old.head_dim, name=name, a=a, b=b, scale=found.scale
        )
    shards = len(checkpoint.files) if checkpoint.layout == "meta" else None
    write_checkpoint(checkpoint, target, checkpoint.layout, shards, wanted)


@dataclass(eq=False, kw_only=True)
class _Merged(Weight):
    """A weight plus scale * B A, computed block by block."""

    name: str
    a: Weight
    b: Weight
    scale: float

    def blocks(self, region: Region, dtype: torch.dtype, multiple: int = 1) -> Iterator[Tensor]:
        (rows, columns), cpu = region, torch.device("cpu")
        wide, r = torch.promote_types(self.dtype, torch.float32), slice(0, self.a.shape[0])
        start = rows.start
        for block in super().blocks(region, wide, math.lcm(multiple, self.b.head_dim or 1)):
            a = self.a.read((r, columns), cpu, wide)
            b = self.b.read((slice(start, start + len(block)), r), cpu, wide)
            merged = torch.addmm(block, b, a, alpha=self.scale).to(dtype)
            if not merged.isfinite().all():
                raise InputError(
                    f"{self.name} would have values that {dtype} can't hold; pass "
                    "another --dtype, such as bfloat16"
                )
            start += len(block)
            yield merged
