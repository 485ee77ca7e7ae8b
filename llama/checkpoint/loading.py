"""How an opened checkpoint becomes a model on this rank."""

import dataclasses
import math
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from llama import console, distributed, kernels
from llama.args import ModelArgs, is_linear
from llama.checkpoint.opening import Checkpoint
from llama.distributed import ParallelLayersOnMeta
from llama.errors import InputError
from llama.model import Transformer
from llama.quantization import packed_formats
from llama.quantization.linear_layers import pack_blocks, packed_linear
from llama.storage.sharding import Weight, share

# Makes what takes a linear layer's place, of its name, the layer, and its weight.
ConvertLayer = Callable[[str, nn.Module, Iterator[Tensor]], nn.Module]


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    convert_layer: ConvertLayer | None = None,
    **overrides: Any,
) -> Transformer:
    """The model of a checkpoint, this rank's part of it, on `device` in `dtype`.

    `overrides` replace values of the checkpoint's ModelArgs, such as max_batch_size. On a CPU what
    is in `dtype` already stays mapped from the file. With `convert_layer` no linear layer's weight
    is there whole: what it is given are blocks of its rows, each a multiple of a tile, or of a
    quantized checkpoint, which needs it, the two packed tensors. Raises ValueError where the ranks
    can't share the model or Meta's shards do not belong together.
    """
    if checkpoint.quantize and convert_layer is None:
        raise InputError(
            f"{checkpoint.folder.path} holds {checkpoint.quantize} weights, which only "
            "Llama.build can use; take the model that it was made from"
        )
    with ParallelLayersOnMeta():
        model = Transformer(dataclasses.replace(checkpoint.args, **overrides))
    checkpoint.check_shards()
    ranks, rank = distributed.model_parallel_size(), distributed.model_parallel_rank()
    stored = packed_formats.stored_shapes(model.params, checkpoint.quantize, ranks)
    regions = {
        name: share(weight.shape, stored[name], rank, ranks)
        for name, weight in checkpoint.weights.items()
    }
    dtypes = {name: packed_formats.DTYPES.get(name.rpartition(".")[2], dtype) for name in stored}
    total = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in stored.items())
    read: dict[Weight, Tensor] = {}

    def whole(name: str) -> Tensor:
        weight = checkpoint.weights[name]
        if weight not in read:
            part = weight.read(regions[name], device, dtypes[name])
            if device.type == "cpu":
                # Mapped, it would come from the disk at its first use: a byte of each page now.
                part.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
            read[weight] = part
        return read[weight]

    def pieces(name: str) -> Iterator[Tensor]:
        if checkpoint.quantize:
            # For a GPU they are mapped here and leave nothing behind: there they are repacked.
            cpu, parts = torch.device("cpu"), packed_formats.tensor_names(name)
            if device.type != "cpu":
                return (checkpoint.weights[p].read(regions[p], cpu, dtypes[p]) for p in parts)
            return map(whole, parts)
        return checkpoint.weights[name].blocks(regions[name], dtype, packed_formats.TILE)

    def counted(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
        for tensor in tensors:
            yield tensor
            bar.update(tensor.nbytes)

    mine: dict[str, Tensor] = {}
    with console.progress(total, f"Loading {checkpoint.folder.path}") as bar:
        for name, weight in model.state_dict().items():
            if convert_layer and is_linear(name, tuple(weight.shape)):
                layer_name = name.removesuffix(".weight")
                layer = model.get_submodule(layer_name)
                made = convert_layer(layer_name, layer, counted(pieces(name)))
                model.set_submodule(layer_name, made)
            else:
                (mine[name],) = counted(iter([whole(name)]))
    model.load_state_dict(mine, strict=True, assign=True)
    return model.eval()


def stored_format(checkpoint: Checkpoint, name: str | None) -> str | None:
    """The format to load a checkpoint in: of packed weights only their own is possible."""
    if checkpoint.quantize and name not in (None, checkpoint.quantize):
        raise InputError(
            f"quantize={name!r}, but {checkpoint.folder.path} holds {checkpoint.quantize} weights; "
            "take the model that they were made from"
        )
    return checkpoint.quantize or name


def packed_layers(
    checkpoint: Checkpoint, name: str, device: torch.device | None = None
) -> ConvertLayer:
    """For `load_model`: packs each linear layer as it is read, or takes what is packed already.

    What is read are blocks of rows, so that no unpacked weight ever is in memory whole. For a GPU
    as `device` they are repacked. Raises ValueError for layers that do not divide into groups.
    """
    packed_formats.stored_shapes(checkpoint.args, name, distributed.model_parallel_size())

    def convert(layer_name: str, layer: nn.Module, tensors: Iterator[Tensor]) -> nn.Module:
        assert isinstance(layer, (ColumnParallelLinear, RowParallelLinear))
        weight_name = f"{layer_name}.weight"
        bits = packed_formats.bits(name, weight_name)
        if checkpoint.quantize:
            packed = kernels.Packed(*tensors)
        else:
            shape = tuple(layer.weight.shape)
            shapes = packed_formats.packed_shapes(weight_name, shape, name).values()
            data, scales = (
                torch.empty(shape, dtype=dtype)
                for shape, dtype in zip(shapes, packed_formats.DTYPES.values(), strict=True)
            )
            at = 0
            for block in pack_blocks(tensors, bits, weight_name):
                end = at + len(block.data)
                data[at:end], scales[at:end] = block
                at = end
            packed = kernels.Packed(data, scales)
        return packed_linear(layer, packed, device or torch.device("cpu"))

    return convert


def empty_model(args: ModelArgs) -> Transformer:
    """A model whose parameters have shapes but no memory; `to_empty` gives them some."""
    with ParallelLayersOnMeta():
        model = Transformer(args)
    return model.to("meta")  # norms are made by plain torch
