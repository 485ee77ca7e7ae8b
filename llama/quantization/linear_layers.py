"""Weight formats: the layers that take the place of a model's linear layers for inference.

    model = Transformer(args).bfloat16()
    use_format(model, "int4")

Without a format weights stay as they lie in the file, bfloat16 or float32. A few rows go through
the native kernel, many through torch: in float32 on a CPU without products of bfloat16.
`bf12` stores bfloat16 weights in 12 bits and rounds nothing: outputs have the bits of bfloat16. A
few rows are multiplied by the packed weights, which are put together in registers; for many rows
one matrix at a time is unpacked. The embedding is packed too, and a matrix that gains nothing stays
bfloat16.
`int8` and `int4` round them in groups of 32 inputs with a float16 scale each (8.5 and 4.5 bits a
weight), so that decoding reads fewer bytes. In int4 the output layer is int8: no later layer
corrects its errors. The embedding is not packed, for only one row of it is read. A layer stays
column or row parallel; groups lie along the inputs, so that ranks cut between them and compute
what one rank does, to the last bit on 2, 4 or 8 of them. A prompt's many rows are multiplied by the
same kernel as one; without native kernels, by unpacked weights in bfloat16.
All this is for a CPU; on an NVIDIA GPU int8 and int4 are repacked (see `cuda_packed.py`).

`llama.checkpoint.load` packs each weight while it is read, or reads it packed, so that the bfloat16
model is never in memory whole; `use_format` then replaces the blocks only.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import distributed, kernels
from llama.distributed import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from llama.errors import InputError
from llama.model import (
    ColumnParallelLinear,
    RowParallelLinear,
    Transformer,
    TransformerBlock,
    VocabParallelEmbedding,
)
from llama.quantization import packed_formats
from llama.quantization.bf12_embedding import Bf12Embedding
from llama.quantization.cuda_packed import MIN_CAPABILITY, CudaPacked, repack
from llama.quantization.inference_block import InferenceBlock
from llama.storage import huge_pages

ParallelLinear: TypeAlias = ColumnParallelLinear | RowParallelLinear
_FLOAT32_OUTPUTS = 512  # rows of a weight that are float32 at a time
_KEPT_NUMBERS = 2**27  # of an unpacked matrix whose memory is kept: all but output layers
_unpacked = threading.local()


class InferenceLinear(nn.Module):
    """A column- or row-parallel layer for inference; its classes differ in how weights are stored.

    `gather_output` and `input_is_parallel` are those of fairscale's layer: the first of a column-
    parallel one, the second True of a row-parallel one.
    """

    def __init__(self, layer: ParallelLinear) -> None:
        super().__init__()
        # fairscale's layers have the one or the other.
        self.input_is_parallel: bool = getattr(layer, "input_is_parallel", False)
        self.gather_output: bool = getattr(layer, "gather_output", False)

    @property
    def partial_sums(self) -> int:
        """In how many partial sums this rank adds up its inputs: `PARTIAL_SUMS` on all ranks."""
        if not self.input_is_parallel:
            return 1
        return max(1, kernels.PARTIAL_SUMS // distributed.model_parallel_size())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of `x`; logits of few rows in float32."""
        if torch.is_grad_enabled() and not self.input_is_parallel:
            x = copy_to_model_parallel_region(x)  # its gradient is the sum of the ranks'
        y = self.multiply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        if self.gather_output:
            return gather_from_model_parallel_region(y)
        if self.input_is_parallel:
            if torch.is_grad_enabled() or not _is_cpu_bfloat16(x):
                return reduce_from_model_parallel_region(y).to(x.dtype)  # has a gradient
            return distributed.sum_over_ranks(y).to(x.dtype)  # adds in the order of one rank
        return y

    @property
    def matrix(self) -> Tensor | kernels.Packed | kernels.Bf12:
        """The weights as `kernels` takes them."""
        raise NotImplementedError

    def multiply(self, rows: Tensor) -> Tensor:
        """rows (n, inputs) times this rank's weights, (n, outputs)."""
        raise NotImplementedError

    def _native_product(self, rows: Tensor) -> Tensor:
        """By the native kernel: in float32 where results are logits, or added up over ranks."""
        sums_over_ranks = self.input_is_parallel and distributed.model_parallel_size() > 1
        as_float = self.gather_output or sums_over_ranks
        return kernels.linear(rows, self.matrix, as_float, self.partial_sums)


class DenseLinear(InferenceLinear):
    """Keeps the layer's own parameter: the model can still be saved, moved, cast and trained."""

    def __init__(self, layer: ParallelLinear) -> None:
        super().__init__(layer)
        self.weight = layer.weight

    @property
    def matrix(self) -> Tensor:
        return self.weight.detach()

    def multiply(self, rows: Tensor) -> Tensor:
        is_cpu = rows.device.type == "cpu" and rows.dtype in kernels.DTYPES
        if is_cpu and not torch.is_grad_enabled():
            if len(rows) <= kernels.MAX_ROWS and kernels.available():
                return self._native_product(rows)
            if rows.dtype == torch.bfloat16 and not distributed.cpu_multiplies_bfloat16():
                return _float32_product(rows, self.matrix)
        return F.linear(rows, self.weight)


class Bf12Linear(InferenceLinear):
    """bfloat16 weights in 12 bits on a CPU: computes the bits that `DenseLinear` does."""

    def __init__(self, layer: ParallelLinear, packed: kernels.Bf12) -> None:
        super().__init__(layer)
        self.packed = packed

    @property
    def matrix(self) -> kernels.Bf12:
        return self.packed

    def multiply(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _UnpackedProduct.apply(rows, lambda: kernels.unpack_bf12(self.packed))
        if len(rows) <= kernels.MAX_ROWS and kernels.available():
            return self._native_product(rows)
        if not distributed.cpu_multiplies_bfloat16():
            return _float32_product(rows, self.packed)
        return F.linear(rows, _unpack_to_kept_memory(self.packed))


class PackedLinear(InferenceLinear):
    """int8 or int4 weights on a CPU."""

    def __init__(self, layer: ParallelLinear, packed: kernels.Packed) -> None:
        super().__init__(layer)
        self.packed = packed

    @property
    def matrix(self) -> kernels.Packed:
        return self.packed

    def multiply(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not (_is_cpu_bfloat16(rows) and kernels.available()):
            return _UnpackedProduct.apply(rows, lambda: kernels.unpack(self.packed))
        return self._native_product(rows)


class PackedCudaLinear(InferenceLinear):
    """int8 or int4 weights on an NVIDIA GPU."""

    def __init__(self, layer: ParallelLinear, packed: CudaPacked) -> None:
        super().__init__(layer)
        self.packed = packed

    def multiply(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _UnpackedProduct.apply(rows, self.packed.unpack)
        return self.packed.times(rows)


def packed_linear(
    layer: ParallelLinear, packed: kernels.Packed, device: torch.device
) -> InferenceLinear:
    """The layer with packed weights, for a CPU or an NVIDIA GPU."""
    if device.type == "cuda":
        return PackedCudaLinear(layer, repack(packed, device))
    return PackedLinear(layer, packed)


def _is_cpu_bfloat16(x: Tensor) -> bool:
    return (x.device.type, x.dtype) == ("cpu", torch.bfloat16)


def _float32_product(rows: Tensor, weight: Tensor | kernels.Bf12) -> Tensor:
    """rows @ weight.T in bfloat16, computed in float32, some rows of the weight at a time."""
    y, wide = rows.new_empty(len(rows), weight.shape[0]), rows.float()
    for start in range(0, weight.shape[0], _FLOAT32_OUTPUTS):
        outputs = slice(start, start + _FLOAT32_OUTPUTS)
        if isinstance(weight, Tensor):
            some = weight[outputs]
        else:
            some = kernels.unpack_bf12(weight, outputs)
        y[:, outputs] = wide @ some.float().T
    return y


def _unpack_to_kept_memory(weight: kernels.Bf12) -> Tensor:
    """The matrix in bfloat16, which the thread's next call overwrites.

    The system hands out large memory zeroed, which takes as long as unpacking does.
    """
    count = math.prod(weight.shape)
    if count > _KEPT_NUMBERS:
        return kernels.unpack_bf12(weight)
    memory = getattr(_unpacked, "memory", None)
    if memory is None or len(memory) < count:
        memory = _unpacked.memory = huge_pages.empty((count,), torch.bfloat16)
    return kernels.unpack_bf12(weight, out=memory[:count].view(weight.shape))


class _UnpackedProduct(torch.autograd.Function):
    """Rows times packed weights, unpacked, with the gradient of the rows (to train adapters).

    Weights are unpacked again for the gradient: kept for it, those of all layers would take the
    memory of an unpacked model.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, unpack: Callable[[], Tensor]) -> Tensor:
        ctx.unpack = unpack
        return F.linear(rows, unpack())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.unpack(), None


def check_format(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where a model of that dtype can't have weights of that format there."""
    if name not in ("bfloat16", *packed_formats.PACKED):
        raise InputError(f"quantize={name!r} is none of {', '.join(packed_formats.PACKED)}")
    if name == "bf12" and (device.type, dtype) != ("cpu", torch.bfloat16):
        raise InputError(
            f"bf12 weights are multiplied with bfloat16 on a CPU, not with {dtype} on {device}; "
            "plain bfloat16 weights have the same values"
        )
    if device.type not in ("cpu", "cuda") or dtype != torch.bfloat16:
        raise InputError(
            f"{name} weights are multiplied with bfloat16 on a CPU or an NVIDIA GPU, "
            f"not with {dtype} on {device}"
        )
    if device.type == "cuda" and name in packed_formats.PACKED:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            raise InputError(
                f"{name} weights need a GPU of compute capability 8.0 or more; "
                f"{device} has {capability[0]}.{capability[1]}"
            )


def use_format(model: Transformer, name: str | None) -> None:
    """Replaces a model's linear layers, and on a CPU its blocks, one by one.

    `name` is bf12, int8 or int4, or bfloat16 or None to keep the weights as they are; the model is
    in bfloat16, or with None on a CPU also in float32. Raises ValueError for another format, dtype
    or device, and layers that do not divide into groups.
    """
    device, dtype = model.norm.weight.device, model.norm.weight.dtype
    if name or (device.type, dtype) != ("cpu", torch.float32):
        check_format(name or "bfloat16", device, dtype)
    if name == "bf12":
        _pack_to_bf12(model)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if not isinstance(child, ParallelLinear):
                continue
            layer: InferenceLinear
            if name in (None, "bfloat16", "bf12"):
                layer = DenseLinear(child)
            else:
                bits = packed_formats.bits(name, f"{child_name}.weight")
                try:
                    packed = kernels.pack(child.weight.detach().cpu(), bits)
                except InputError as error:
                    raise InputError(f"{name}: {child_name}: {error}") from error
                layer = packed_linear(child, packed, device)
            setattr(module, child_name, layer)
    if device.type == "cpu":
        for i, block in enumerate(model.layers):
            assert isinstance(block, TransformerBlock)
            model.layers[i] = InferenceBlock(block)


def bf12_layer(
    layer: ParallelLinear | VocabParallelEmbedding, packed: kernels.Bf12
) -> Bf12Linear | Bf12Embedding:
    """The layer with weights in 12 bits."""
    if isinstance(layer, ParallelLinear):
        return Bf12Linear(layer, packed)
    return Bf12Embedding(layer, packed)


def _pack_to_bf12(model: Transformer) -> None:
    """Replaces the layers that gain by it. A tied output layer shares the embedding's memory."""
    packed: dict[int, kernels.Bf12] = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, ParallelLinear | VocabParallelEmbedding):
            weight = layer.weight.detach()
            address = weight.data_ptr()
            if address not in packed:
                packed[address] = kernels.pack_bf12(weight)
            if packed[address].gains:
                model.set_submodule(name, bf12_layer(layer, packed[address]))


def pack_blocks(blocks: Iterable[Tensor], bits: int, name: str) -> Iterator[kernels.Packed]:
    """Packs a bfloat16 matrix by blocks of its rows; each block has a multiple of 16.

    Raises ValueError where a scale would be no finite float16.
    """
    for block in blocks:
        packed = kernels.pack(block.contiguous(), bits)
        if not packed.scales.isfinite().all():
            raise InputError(f"{name} has values that int{bits} can't hold")
        yield packed


class Divergence(NamedTuple):
    """How two models predict the same text, in nats a token.

    reference   mean negative log-likelihood of the text by the reference model
    packed      and by the packed model
    kl          Kullback-Leibler divergence of the packed model's predictions from the reference's
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

    Each window is a list of token ids, no longer than the models' context; every token but the
    first is predicted, so windows should begin with begin_of_text. Perplexity is e to the nats a
    token. The arithmetic is that of decoding, which rounds a packed layer's inputs to int8: tokens
    go through the models 16 at a time, as many as the native kernels take, with a cache of earlier
    ones. Logits are compared in float32, and only those of 16 tokens are in memory. Raises
    ValueError where no window has two tokens.
    """
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([list(window)])
            caches = [model.new_cache(1, len(window)) for model in (reference, packed)]
            for start in range(0, len(window) - 1, kernels.MAX_ROWS):
                end = min(start + kernels.MAX_ROWS, len(window) - 1)
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
