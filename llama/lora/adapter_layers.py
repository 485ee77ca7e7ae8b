"""LoRA: adapters of low rank that are trained beside frozen weights (Hu et al., 2021).

    y = W x + (alpha / r) B (A x)           A (r, inputs), B (outputs, r) with r small, B first zero

    add_lora(model, LoraConfig(r=8, targets=("wq", "wv")))     # only A and B are left to train
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=2e-4)
    ...
    save_adapter(model, "polite", base="Llama-3.2-1B-Instruct")
    Llama.build("Llama-3.2-1B-Instruct", adapter="polite", quantize="int4")

W may be in any format of `llama.quantization`. Of several ranks, each holds all of A and its rows
of B where a layer's outputs are cut (column parallel), and its columns of A and all of B where the
inputs are (row parallel).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import console, distributed, kernels
from llama.args import is_linear, weight_shapes
from llama.distributed import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from llama.errors import InputError, InputTypeError
from llama.lora.adapter_files import Adapter, open_adapter, write_adapter
from llama.model import Transformer
from llama.storage.sharding import Region, share

TARGETS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "output")
_WIDTH = 32  # inputs that native kernels multiply at a time


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how.

    `targets` are some of `TARGETS`, in all blocks; A is drawn with `seed`. Raises ValueError or
    TypeError for a value out of its range.
    """

    r: int = 16
    alpha: float = 32
    targets: tuple[str, ...] = TARGETS[:-1]
    seed: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise InputError(f"LoRA's r={self.r!r} should be a whole number of 1 or more")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"LoRA's alpha={self.alpha!r} should be greater than 0")
        if isinstance(self.targets, str) or not self.targets:
            raise InputTypeError(f"LoRA's targets={self.targets!r} should be some of {TARGETS}")
        if unknown := [name for name in self.targets if name not in TARGETS]:
            raise InputError(
                f"LoRA's targets name {', '.join(map(repr, unknown))}; possible are "
                + ", ".join(TARGETS)
            )


class LoRALinear(nn.Module):
    """A layer with an adapter beside it: base(x) + scale * B(A(x)).

    `base` is a parallel layer of `model.py` or an `InferenceLinear`, and is not changed. `a`
    (r, inputs) and `b` (outputs, r) are this rank's shards.
    """

    def __init__(self, base: Any, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        # fairscale's layers have the one or the other.
        self.input_is_parallel = getattr(base, "input_is_parallel", False)
        self.gather_output = getattr(base, "gather_output", False)
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the dtype that the base gives."""
        y = self.base(x)
        low = _times(x, self.lora_A)  # (..., r)
        if self.input_is_parallel:
            low = reduce_from_model_parallel_region(low)
        else:
            low = copy_to_model_parallel_region(low)  # its gradient is the sum of the ranks'
        change = _times(low, self.lora_B)
        if self.gather_output:
            change = gather_from_model_parallel_region(change)
        return torch.add(y, change, alpha=self.scale)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., k) times weight (n, k), in the dtype of x: (..., n)."""
    weight = weight.to(x.dtype)
    is_native = (x.device.type, x.dtype) == ("cpu", torch.bfloat16) and not torch.is_grad_enabled()
    # Of a few rows torch makes slow products in bfloat16, above all where there is no AVX-512.
    if is_native and x.numel() <= kernels.MAX_ROWS * x.shape[-1] and kernels.available():
        return kernels.linear(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return F.linear(x, weight)


def add_lora(model: Transformer, config: LoraConfig) -> None:
    """Puts new adapters beside the chosen layers and freezes all other weights.

    A is drawn as `nn.Linear` draws a weight, the same on any number of ranks, and B is zero, so
    the model computes what it did; both are float32. Raises ValueError where the model has an
    adapter already, or where ranks share KV heads, since nothing adds up their gradients.
    """
    ranks, kv_heads = distributed.model_parallel_size(), model.params.kv_heads
    if ranks > kv_heads:
        raise InputError(
            f"{ranks} ranks share {kv_heads} KV head(s), which works for inference only; train an "
            f"adapter on at most {kv_heads} rank(s)"
        )
    generator, shapes = torch.Generator().manual_seed(config.seed), weight_shapes(model.params)
    shards = {}
    for name, (rows, columns) in _regions(model).items():
        if name.rpartition(".")[2] in config.targets:
            a = torch.empty(config.r, shapes[f"{name}.weight"][1])
            nn.init.kaiming_uniform_(a, math.sqrt(5), generator=generator)
            b = torch.zeros(rows.stop - rows.start, config.r)
            shards[name] = a[:, columns].clone(), b
    _adapt(model, shards, config.alpha / config.r)


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All A and B of a model: the parameters to train."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    return [parameter for layer in layers for parameter in (layer.lora_A, layer.lora_B)]


def load_adapter(
    model: Transformer, adapter: str | Path | Adapter, dtype: torch.dtype = torch.float32
) -> None:
    """Puts the adapter in a folder beside the model's layers and freezes all other weights.

    Each rank reads its shards. In float32 the adapter can be trained further; another `dtype`, the
    model's, is for inference. Raises what `open_adapter` raises, and ValueError where the model has
    an adapter already.
    """
    _adapt(model, *adapter_shards(model, adapter, dtype))


def adapter_shards(
    model: Transformer, adapter: str | Path | Adapter, dtype: torch.dtype
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """A and B of each adapted layer as this rank has them, and the adapter's scale."""
    if not isinstance(adapter, Adapter):
        adapter = open_adapter(adapter, model.params)
    shards, regions, cpu = {}, _regions(model), torch.device("cpu")
    for name, (whole_a, whole_b) in adapter.layers.items():
        rows, columns = regions[name]
        everything = slice(0, whole_a.shape[0])
        a = whole_a.read((everything, columns), cpu, dtype).clone()
        b = whole_b.read((rows, everything), cpu, dtype).clone()
        if dtype == torch.bfloat16:  # native kernels are slow where r is no multiple of 32
            padding = -len(a) % _WIDTH
            a, b = F.pad(a, (0, 0, 0, padding)), F.pad(b, (0, padding))
        shards[name] = a, b
    return shards, adapter.scale


def save_adapter(model: Transformer, folder: str | Path, base: str | Path | None = None) -> None:
    """Writes the model's adapter into a folder as `peft` does, whole on any number of ranks.

    All ranks call it, and the first writes. `base` is the path or name of the adapted model, which
    the folder names. Raises ValueError for a model without an adapter.
    """
    shapes, layers = weight_shapes(model.params), {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            (n, k), r, scale = shapes[f"{name}.weight"], len(layer.lora_A), layer.scale
            layers[name] = _whole(layer.lora_A, (r, k)), _whole(layer.lora_B, (n, r))
    if not layers:
        raise InputError("the model has no adapter to save; add_lora puts one there")
    if console.is_main():
        write_adapter(folder, layers, scale, model.params, base)


def _regions(model: Transformer) -> dict[str, Region]:
    """The rows and columns of each linear layer that this rank holds."""
    ranks, rank = distributed.model_parallel_size(), distributed.model_parallel_rank()
    local = weight_shapes(model.params, ranks)
    return {
        name.removesuffix(".weight"): share(whole, local[name], rank, ranks)
        for name, whole in weight_shapes(model.params).items()
        if is_linear(name, whole)
    }


def _adapt(model: Transformer, shards: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
    if lora_parameters(model):
        raise InputError("the model has an adapter already; load it again for another one")
    model.requires_grad_(False)
    device = model.norm.weight.device
    for name, (a, b) in shards.items():
        base: Any = model.get_submodule(name)
        model.set_submodule(name, LoRALinear(base, a.to(device), b.to(device), scale))
    for block in model.layers:
        if hasattr(block, "is_adapted"):
            block.is_adapted = bool(lora_parameters(block))  # type: ignore[assignment]


def _whole(shard: Tensor, shape: tuple[int, int]) -> Tensor:
    """The whole of a parameter, from the ranks' shards, on the CPU."""
    shard, ranks = shard.detach(), distributed.model_parallel_size()
    if shard.shape == shape:
        return shard.cpu()
    whole = torch.empty(shape, dtype=shard.dtype)
    shards = gather_from_model_parallel_region(shard.flatten()).cpu().chunk(ranks)
    for rank, flat in enumerate(shards):
        whole[share(shape, tuple(shard.shape), rank, ranks)] = flat.view(shard.shape)
    return whole
