"""Weight formats: what takes the place of a model's linear layers once its weights are there.

    model = load_model(checkpoint, torch.device("cpu"), torch.bfloat16)
    use_format(model, "int4")

`bfloat16` keeps the weights as they lie in the file and multiplies a few rows by the native kernel.
`int8` and `int4` pack them in groups of 32 inputs with a float16 scale each (8.5 and 4.5 bits a
weight): decoding reads as many bytes less. In int4 the output layer is int8: what goes wrong there
nothing after it can mend. The embedding stays as it is, for only a row of it is read. A layer stays
column or row parallel; groups lie along the inputs, so that ranks cut between them and compute
what one rank does. Many rows at a time, a prompt, are multiplied by unpacked weights in bfloat16.
"""

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from fairscale.nn.model_parallel.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from torch import Tensor, nn

from llama import kernels, parallel
from llama.model import Transformer

FORMATS = ("bfloat16", "int8", "int4")
_FEW_ROWS = 16  # up to so many the kernel reads faster than a matrix product


class InferenceLinear(nn.Module):
    """A column or row parallel layer whose weights are in a format, for inference on a CPU.

    In bfloat16 `weight` is the layer's own parameter, so that the model can still be saved, moved
    and trained; `packed` takes its place otherwise.
    """

    weight: nn.Parameter | None

    def __init__(self, layer: ColumnParallelLinear | RowParallelLinear, bits: int) -> None:
        super().__init__()
        self.reduces = isinstance(layer, RowParallelLinear)
        self.gathers = not self.reduces and layer.gather_output
        self.packed = None if bits == 16 else kernels.pack(layer.weight.detach(), bits)
        self.weight = layer.weight if bits == 16 else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs); of few rows logits, and sums over ranks, in float32."""
        if torch.is_grad_enabled() and not self.reduces:
            x = copy_to_model_parallel_region(x)  # the ranks' gradients add up to its own
        rows = x.flatten(0, -2)
        as_float = self.gathers or (self.reduces and parallel.model_parallel_size() > 1)
        few = len(rows) <= _FEW_ROWS and not torch.is_grad_enabled()
        if self.packed is not None:
            if few:
                y = kernels.linear_packed(rows, self.packed, as_float)
            else:
                y = F.linear(rows, kernels.unpack(self.packed))
        else:
            assert self.weight is not None
            if few and (x.device.type, x.dtype) == ("cpu", torch.bfloat16):
                y = kernels.linear(rows, self.weight, as_float)
            else:
                y = F.linear(rows, self.weight)
        y = y.unflatten(0, x.shape[:-1])
        if self.gathers:
            return gather_from_model_parallel_region(y)
        if self.reduces:
            return reduce_from_model_parallel_region(y).to(x.dtype)
        return y


def check_format(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where a model of that dtype can't have weights of that format there."""
    if name not in FORMATS:
        raise ValueError(f"quantize={name!r} is none of {', '.join(FORMATS[1:])}")
    if (device.type, dtype) != ("cpu", torch.bfloat16):
        raise ValueError(
            f"{name} weights are multiplied with bfloat16 on a CPU, not with {dtype} on {device}"
        )


def use_format(model: Transformer, name: str) -> None:
    """Replaces the linear layers of a bfloat16 model on a CPU, one after the other.

    Raises ValueError for another format than `FORMATS`, a model of another dtype or device, and
    layers that do not divide into groups.
    """
    check_format(name, model.norm.weight.device, model.norm.weight.dtype)
    bits = {"bfloat16": 16, "int8": 8, "int4": 4}[name]
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, (ColumnParallelLinear, RowParallelLinear)):
                is_output = child is model.output
                try:
                    layer = InferenceLinear(child, 8 if is_output and bits == 4 else bits)
                except ValueError as error:
                    raise ValueError(f"{name}: {child_name}: {error}") from error
                setattr(module, child_name, layer)
