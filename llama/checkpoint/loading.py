"""`load`: the one way from a checkpoint folder to a model.

    model = load("Llama-3.1-8B", quantize="int4", adapter="polite", max_batch_size=4)

Each rank reads its region of each weight, no more, from the mapped files. On a CPU a weight that is
stored in the model's dtype, or packed as it is used, stays mapped and is not copied. A weight to be
packed is read in blocks of rows, so that the bfloat16 model is never in memory whole.
"""

import dataclasses
import functools
import math
import mmap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama import console, distributed, kernels
from llama.args import ModelArgs, is_linear
from llama.cache import Int8KVCache
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.errors import InputError
from llama.lora.adapter_files import open_adapter
from llama.lora.adapter_layers import load_adapter
from llama.model import Transformer
from llama.quantization import bf12_files, packed_formats
from llama.quantization.linear_layers import (
    bf12_layer,
    check_format,
    pack_blocks,
    packed_linear,
    use_format,
)
from llama.storage import huge_pages
from llama.storage.sharding import share


def load(
    source: str | Path | Checkpoint,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    adapter: str | Path | None = None,
    max_seq_len: int | None = None,
    max_batch_size: int | None = None,
    model_parallel_size: int | None = None,
    kv_cache_dtype: str | None = None,
    trainable: bool = False,
) -> Transformer:
    """The model in a folder of any layout, or of an opened checkpoint: this rank's shard of it.

    device, dtype        by default the best ones (`select_device`, `select_dtype`)
    quantize             int8 or int4 rounds and packs linear layers for inference, bf12 packs
                         bfloat16 matrices and rounds nothing; a folder that holds int8 or int4
                         keeps its format, and one in bf12 does on a CPU, unless it is `trainable`
    adapter              folder of a LoRA adapter, kept beside the weights
    max_seq_len, max_batch_size    replace those of the checkpoint
    model_parallel_size  how many ranks share the model; by default all that were started
    kv_cache_dtype       int8 for a KV cache of about half the size (`Int8KVCache`)
    trainable            keeps what is not packed as plain torch modules and an adapter in float32;
                         otherwise a CPU gets layers and blocks for inference

    Raises FileNotFoundError or ValueError, naming the file and the values, for what is missing,
    damaged or does not fit, before weights are read where that is possible.
    """
    if kv_cache_dtype not in (None, "int8"):
        raise InputError(f"kv_cache_dtype={kv_cache_dtype!r}: leave it out, or give int8")
    device = distributed.select_device(device)
    distributed.initialize(model_parallel_size, device)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    if checkpoint.quantize and quantize not in (None, checkpoint.quantize):
        raise InputError(
            f"quantize={quantize!r}, but {checkpoint.folder.path} holds {checkpoint.quantize} "
            "weights; take the model that they were made from"
        )
    quantize = checkpoint.quantize or quantize
    if quantize is None and checkpoint.is_bf12 and device.type == "cpu" and not trainable:
        keeps = dtype is None or distributed.select_dtype(device, dtype) == torch.bfloat16
        quantize = "bf12" if keeps else None
    if quantize == "bf12" and device.type != "cpu":
        console.notice(f"bf12 is for a CPU: on {device} the same weights are plain bfloat16")
        quantize, dtype = None, torch.bfloat16 if dtype is None else dtype
    if quantize and dtype is None:
        dtype = torch.bfloat16
    dtype = distributed.select_dtype(device, dtype, checkpoint.parameters)
    if quantize:
        check_format(quantize, device, dtype)
    limits = {"max_seq_len": max_seq_len, "max_batch_size": max_batch_size}
    changes: Any = {name: limit for name, limit in limits.items() if limit is not None}
    args = dataclasses.replace(checkpoint.args, **changes)
    if args.max_seq_len > checkpoint.args.max_seq_len:
        warnings.warn(
            f"max_seq_len={max_seq_len} is more than the {checkpoint.args.max_seq_len} positions "
            f"that {checkpoint.folder.path} was trained on; expect poor text beyond those",
            stacklevel=3,
        )
    lora = None if adapter is None else open_adapter(adapter, args)
    packed = quantize if quantize in packed_formats.PACKED else None
    model = _read_model(checkpoint, args, device, dtype, packed)
    if not trainable and (quantize or (device.type == "cpu" and dtype in kernels.DTYPES)):
        # What could gain by bf12 was packed while it was read.
        use_format(model, "bfloat16" if quantize == "bf12" else quantize)
    if lora:
        load_adapter(model, lora, torch.float32 if trainable else dtype)
    if kv_cache_dtype:
        model.cache_type = Int8KVCache
    return model


def _read_model(
    checkpoint: Checkpoint,
    args: ModelArgs,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
) -> Transformer:
    """A model of fairscale's layers with its weights, which are packed if `quantize` says so.

    Raises ValueError where the ranks can't share the model, its layers do not divide into tiles, or
    shards do not belong together.
    """
    ranks, rank = distributed.model_parallel_size(), distributed.model_parallel_rank()
    with distributed.ParallelLayersOnMeta():
        model = Transformer(args)
    packed_formats.stored_shapes(args, quantize, ranks)  # refuses layers that are no tiles
    checkpoint.check_shards()
    stored = packed_formats.stored_shapes(args, checkpoint.quantize, ranks)
    regions = {
        name: share(weight.shape, stored[name], rank, ranks)
        for name, weight in checkpoint.weights.items()
    }
    dtypes = {name: packed_formats.DTYPES.get(name.rpartition(".")[2], dtype) for name in stored}
    total = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in stored.items())
    weights: dict[str, Tensor] = {}
    bar = console.progress(total, f"Loading {checkpoint.folder.path}")

    def read(name: str, device: torch.device = device) -> Tensor:
        tensor = checkpoint.weights[name].read(regions[name], device, dtypes[name])
        bar.update(tensor.nbytes)
        return tensor

    def blocks(name: str) -> Iterator[Tensor]:
        for block in checkpoint.weights[name].blocks(regions[name], dtype, packed_formats.TILE):
            bar.update(block.nbytes)
            yield block

    @functools.cache  # a tied output layer is the embedding
    def read_bf12(name: str) -> kernels.Bf12 | None:
        rows, columns = stored[name]
        packed = bf12_files.read_packed(checkpoint.weights[name], regions[name])
        if packed is None or not packed.gains:
            return bf12_files.pack_rows(blocks(name), (rows, columns))
        bar.update(2 * rows * columns)
        return kernels.Bf12(columns, *(_resident(each, device) for each in packed.tensors))

    with bar:
        for name, weight in model.state_dict().items():
            shape, layer_name = tuple(weight.shape), name.removesuffix(".weight")
            layer: Any = model.get_submodule(layer_name)
            is_tied = name == "output.weight" and checkpoint.tied
            in_bf12 = None
            if quantize == "bf12" and len(shape) == 2:
                in_bf12 = read_bf12("tok_embeddings.weight" if is_tied else name)
            if in_bf12 is not None:
                model.set_submodule(layer_name, bf12_layer(layer, in_bf12))
            elif quantize in packed_formats.ROUNDED and is_linear(name, shape):
                if checkpoint.quantize:
                    names = packed_formats.tensor_names(name)
                    tensors = [read(name, torch.device("cpu")) for name in names]
                    packed = kernels.Packed(*(_resident(t, device) for t in tensors))
                else:
                    packed = _pack(blocks(name), name, shape, quantize)
                model.set_submodule(layer_name, packed_linear(layer, packed, device))
            elif is_tied:
                weights[name] = weights["tok_embeddings.weight"]
                bar.update(weights[name].nbytes)
            else:
                weights[name] = _resident(read(name), device)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _resident(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor, read from the disk now if it is mapped for a CPU: a byte of each page."""
    if device.type == "cpu":
        tensor.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
    return tensor


def _pack(
    blocks: Iterator[Tensor], name: str, shape: tuple[int, ...], quantize: str
) -> kernels.Packed:
    """Packs a matrix of that shape, of which `blocks` are the rows."""
    shapes = packed_formats.packed_shapes(name, shape, quantize).values()
    packed = kernels.Packed(*map(huge_pages.empty, shapes, packed_formats.DTYPES.values()))
    start = 0
    for block in pack_blocks(blocks, packed_formats.bits(quantize, name), name):
        for whole, rows in zip(packed, block, strict=True):
            whole[start : start + len(rows)] = rows
        start += len(block.data)
    return packed


def empty_model(args: ModelArgs) -> Transformer:
    """A model on torch's meta device: parameters have shapes but no memory until `to_empty`."""
    with distributed.ParallelLayersOnMeta():
        model = Transformer(args)
    return model.to("meta")  # its norms are plain torch
