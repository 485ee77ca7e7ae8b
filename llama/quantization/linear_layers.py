"""Weight formats: what takes the place of a model's linear layers once its weights are there.

    model = load_model(checkpoint, torch.device("cpu"), torch.bfloat16)
    use_format(model, "int4")

`bfloat16` keeps the weights as they lie in the file and multiplies a few rows by the native kernel,
many by torch: in float32 on a CPU that has no products of bfloat16.
`int8` and `int4` pack them in groups of 32 inputs with a float16 scale each (8.5 and 4.5 bits a
weight): decoding reads as many bytes less. In int4 the output layer is int8: what goes wrong there
nothing after it can mend. The embedding stays as it is, for only a row of it is read. A layer stays
column or row parallel; groups lie along the inputs, so that ranks cut between them and compute
what one rank does, to the last bit on 2, 4 or 8 of them. A prompt's many rows are multiplied by the
same kernel as one; without native kernels, by unpacked weights in bfloat16.
All this is for a CPU; on an NVIDIA GPU packed weights are repacked (see `cuda_packed.py`).

With `convert_layer=packed_layers(checkpoint, "int4")` `load_model` packs each weight as it is read,
or takes it from a folder that holds it packed, and the bfloat16 model never is in memory whole;
`use_format` then finds nothing left to pack.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from llama import distributed, kernels
from llama.distributed import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from llama.errors import InputError
from llama.model import Transformer, TransformerBlock
from llama.quantization import packed_formats
from llama.quantization.cuda_packed import OLDEST, CudaPacked, repack
from llama.quantization.inference_block import InferenceBlock

FORMATS = ("bfloat16", *packed_formats.PACKED)
_WIDE_AT_ONCE = 512  # outputs


class InferenceLinear(nn.Module):
    """A column or row parallel layer whose weights are in a format, for inference.

    In bfloat16 `weight` is the layer's own parameter, so that the model can still be saved, moved
    and trained; `packed` takes its place otherwise.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        layer: ColumnParallelLinear | RowParallelLinear,
        bits: int,
        packed: kernels.Packed | CudaPacked | None = None,
    ) -> None:
        super().__init__()
        self.reduces = isinstance(layer, RowParallelLinear)
        self.gathers = not self.reduces and layer.gather_output
        if bits < 16 and packed is None:
            packed = kernels.pack(layer.weight.detach().cpu(), bits)
            if layer.weight.is_cuda:
                packed = repack(packed, layer.weight.device)
        self.packed = packed
        self.weight = layer.weight if bits == 16 else None

    @property
    def parts(self) -> int:
        """In how many parts sums over the inputs are made: those of all ranks are `PARTS`."""
        return max(1, kernels.PARTS // distributed.model_parallel_size()) if self.reduces else 1

    @property
    def matrix(self) -> Tensor | kernels.Packed:
        """The weights, as `kernels` takes them."""
        if self.packed is not None:
            assert isinstance(self.packed, kernels.Packed)
            return self.packed
        assert self.weight is not None
        return self.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs); of few rows logits, and sums over ranks, in float32."""
        if torch.is_grad_enabled() and not self.reduces:
            x = copy_to_model_parallel_region(x)  # the ranks' gradients add up to its own
        rows = x.flatten(0, -2)
        as_float = self.gathers or (self.reduces and distributed.model_parallel_size() > 1)
        plain = torch.is_grad_enabled() or (x.device.type, x.dtype) != ("cpu", torch.bfloat16)
        fits = self.packed is not None or len(rows) <= kernels.MOST_ROWS
        if self.packed is not None and rows.requires_grad:
            y = _Unpacked.apply(rows, self.packed)
        elif isinstance(self.packed, CudaPacked):
            y = self.packed.times(rows)
        elif fits and not plain and kernels.available():
            y = kernels.linear(rows, self.matrix, as_float, self.parts)
        elif self.packed is not None:
            y = F.linear(rows, _unpacked(self.packed))
        else:
            assert self.weight is not None
            widens = not plain and not distributed.cpu_multiplies_bfloat16()
            y = (_wide_product if widens else F.linear)(rows, self.weight)
        y = y.unflatten(0, x.shape[:-1])
        if self.gathers:
            return gather_from_model_parallel_region(y)
        if self.reduces:
            add_up = reduce_from_model_parallel_region if plain else distributed.add_up
            return add_up(y).to(x.dtype)
        return y


def _wide_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T in bfloat16, made in float32, a part of the weights at a time."""
    y, wide = rows.new_empty(len(rows), len(weight)), rows.float()
    for start in range(0, len(weight), _WIDE_AT_ONCE):
        part = slice(start, start + _WIDE_AT_ONCE)
        y[:, part] = wide @ weight[part].float().T
    return y


class _Unpacked(torch.autograd.Function):
    """Rows times packed weights, for what is trained around them.

    Weights are unpacked once more for the gradient: kept for it, those of all layers would stand in
    memory as if they had never been packed.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: kernels.Packed | CudaPacked) -> Tensor:
        ctx.packed = packed
        return F.linear(rows, _unpacked(packed))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ _unpacked(ctx.packed), None


def _unpacked(packed: kernels.Packed | CudaPacked) -> Tensor:
    return packed.unpack() if isinstance(packed, CudaPacked) else kernels.unpack(packed)


def check_format(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where a model of that dtype can't have weights of that format there."""
    if name not in FORMATS:
        raise InputError(f"quantize={name!r} is none of {', '.join(FORMATS[1:])}")
    if device.type not in ("cpu", "cuda") or dtype != torch.bfloat16:
        raise InputError(
            f"{name} weights are multiplied with bfloat16 on a CPU or an NVIDIA GPU, "
            f"not with {dtype} on {device}"
        )
    if device.type == "cuda" and name in packed_formats.PACKED:
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST:
            raise InputError(
                f"{name} weights need a GPU of compute capability 8.0 or more; "
                f"{device} has {capability[0]}.{capability[1]}"
            )


def use_format(model: Transformer, name: str) -> None:
    """Replaces the linear layers of a bfloat16 model, on a CPU its blocks too, one after the other.

    Raises ValueError for another format than `FORMATS`, a model of another dtype or device, and
    layers that do not divide into groups.
    """
    check_format(name, model.norm.weight.device, model.norm.weight.dtype)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, (ColumnParallelLinear, RowParallelLinear)):
                packs = name in packed_formats.PACKED
                bits = packed_formats.bits(name, f"{child_name}.weight") if packs else 16
                try:
                    layer = InferenceLinear(child, bits)
                except ValueError as error:
                    raise InputError(f"{name}: {child_name}: {error}") from error
                setattr(module, child_name, layer)
    if model.norm.weight.device.type == "cpu":
        for i, block in enumerate(model.layers):
            assert isinstance(block, TransformerBlock)
            model.layers[i] = InferenceBlock(block)


def pack_blocks(blocks: Iterable[Tensor], bits: int, name: str) -> Iterator[kernels.Packed]:
    """Packs a matrix by blocks of its rows, multiples of 16, in bfloat16.

    Raises ValueError where a scale would be no finite float16.
    """
    for block in blocks:
        packed = kernels.pack(block.contiguous(), bits)
        if not packed.scales.isfinite().all():
            raise InputError(f"{name} has values that int{bits} can't hold")
        yield packed


class Divergence(NamedTuple):
    """How two models predict the same text, in nats a token.

    reference   mean negative log-likelihood of the text by the one model
    packed      and by the other
    kl          Kullback-Leibler divergence of the other's predictions from those of the one
    tokens      how many were predicted
    """

    reference: float
    packed: float
    kl: float
    tokens: int


def divergence(
    reference: Transformer, packed: Transformer, windows: Iterable[Sequence[int]]
) -> Divergence:
    """Compares the predictions of two models of one vocabulary on text that neither has seen.

    Each window is a list of token ids, of at most the models' context; from its second on each
    token is predicted, so that windows better begin with begin_of_text. Perplexity is e to the
    nats a token. The arithmetic is that of decoding, which also rounds a packed layer's inputs to
    int8: tokens go through the models at most 16 at a time, as many as the native kernels take,
    with a cache for what came before. Logits are compared in float32, and no more than those of
    16 tokens are in memory. Raises ValueError where no window has two tokens.
    """
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([list(window)])
            caches = [model.new_cache(1, len(window)) for model in (reference, packed)]
            for start in range(0, len(window) - 1, kernels.MOST_ROWS):
                end = min(start + kernels.MOST_ROWS, len(window) - 1)
                ours, theirs = (
                    model(ids[:, start:end], start, cache=cache)[0].log_softmax(-1)
                    for model, cache in zip((reference, packed), caches, strict=True)
                )
                targets = ids[0, start + 1 : end + 1]
                sums += torch.stack(
                    (
                        F.nll_loss(ours, targets, reduction="sum"),
                        F.nll_loss(theirs, targets, reduction="sum"),
                        F.kl_div(theirs, ours, log_target=True, reduction="sum"),
                    )
                )
                count += end - start
    if not count:
        raise InputError("no text to compare on: give at least two tokens")
    ours, theirs, kl = (float(value) / count for value in sums)
    return Divergence(ours, theirs, kl, count)
