"""`llama merge`: a checkpoint, and an adapter of it, become one checkpoint.

    llama merge Llama-3.2-1B polite Llama-3.2-1B-polite

W + (alpha / r) B A is computed in float32, block by block on the way from file to file, and written
as `llama convert` writes. What that gives is a checkpoint like any other, also to be quantized.
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


def merge(base: str, adapter: str, destination: str, dtype: str | None = None) -> None:
    """Writes the checkpoint in one folder, with an adapter added to its weights, into another.

    Args:
        base: folder of the checkpoint; the new one has its layout and its number of shards.
        adapter: folder of the adapter.
        destination: folder that is to be made.
        dtype: bfloat16, float16 or float32; what each weight has if not given.
    """
    target = new_folder(str(destination))
    wanted = None if dtype is None else distributed.select_dtype(torch.device("cpu"), dtype)
    checkpoint = open_checkpoint(str(base))
    if checkpoint.quantize:
        raise InputError(
            f"{base} holds {checkpoint.quantize} weights, to which nothing can be added: merge "
            "into the model that they were made from and convert the result with --quantize "
            f"{checkpoint.quantize}, or keep the adapter apart (adapter= of Llama.build)"
        )
    found = open_adapter(str(adapter), checkpoint.args)
    for layer, (a, b) in found.layers.items():
        name = f"{layer}.weight"
        old = checkpoint.weights[name]
        checkpoint.weights[name] = _Merged(
            old.shape, old.pieces, old.head_dim, name=name, a=a, b=b, scale=found.scale
        )
    shards = len(checkpoint.files) if checkpoint.layout == "meta" else None
    write_checkpoint(checkpoint, target, checkpoint.layout, shards, wanted)


@dataclass(eq=False, kw_only=True)
class _Merged(Weight):
    """A weight to whose blocks scale * B A is added."""

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
                    f"{self.name} would have values that {dtype} can't hold; give "
                    "another --dtype, such as bfloat16"
                )
            start += len(block)
            yield merged
