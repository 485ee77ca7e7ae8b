"""Packed weights in files: the tensors that hold a matrix in bf12, int8 or int4.

A folder with "quantize": "int4" in its `params.json` has Meta's layout, but for linear layers:

    layers.0.attention.wq.weight         (n, k)   becomes
    layers.0.attention.wq.weight.data    (n / 16, k / 32, 256), uint8; 512 for int8
    layers.0.attention.wq.weight.scales  (n / 16, k / 32, 16), float16

These are the two of `kernels.Packed`, tile by tile. A shard of a matrix is packed as a shard of
these: outputs are cut along their first dimension, inputs along the second, so that resharding
follows from shapes here too. In int4 the output layer is int8. Norms and embedding are not packed.

With "bf12" every matrix that gains by it, the embedding too, is the four tensors of `kernels.Bf12`:
the matrix of one file, whose rows are as long as that file's shard. They are read as the bfloat16
matrix that they stand for (`bf12_files.py`), so that nothing else depends on how it was cut.
"""

from collections.abc import Mapping

import torch

from llama.args import ModelArgs, is_linear, weight_shapes
from llama.errors import InputError
from llama.kernels import GROUP as GROUP
from llama.kernels import TILE as TILE
from llama.kernels import weight_packing

_BITS = {"int8": 8, "int4": 4}
ROUNDED = tuple(_BITS)
PACKED = ("bf12", *ROUNDED)
DTYPES = {"data": torch.uint8, "scales": torch.float16}
BF12_DTYPES = {
    "blocks": torch.uint8,
    "tables": torch.uint8,
    "starts": torch.int32,
    "escapes": torch.int32,
}


def bits(quantize: str, name: str) -> int:
    """Bits of each number of the weight `name`, without scales: at least 8 of the output layer."""
    return max(_BITS[quantize], 8 if name == "output.weight" else 0)


def tensor_names(name: str) -> list[str]:
    """The names of the two tensors of a packed weight."""
    return [f"{name}.{tensor}" for tensor in DTYPES]


def packed_shapes(
    name: str, shape: tuple[int, ...], quantize: str
) -> dict[str, tuple[int, int, int]]:
    """Shapes of the two tensors. Raises ValueError for a matrix that does not divide into tiles."""
    n, k = shape
    try:
        shapes = weight_packing.packed_shapes(n, k, bits(quantize, name))
    except InputError as error:
        raise InputError(f"{quantize}: {name}: {error}") from error
    return dict(zip(tensor_names(name), shapes, strict=True))


def stored_shapes(
    args: ModelArgs, quantize: str | None, ranks: int = 1
) -> dict[str, tuple[int, ...]]:
    """As `weight_shapes`, of the tensors that one of `ranks` holds in int8 or int4.

    bf12 stands for bfloat16 of the same shapes.

    Raises ValueError where the ranks can't share the model, or layers do not divide into tiles.
    """
    shapes: Mapping[str, tuple[int, ...]] = weight_shapes(args, ranks)
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if quantize in _BITS and is_linear(name, shape):
            try:
                stored |= packed_shapes(name, shape, quantize)
            except InputError as error:
                where = f", on each of {ranks} ranks" if ranks > 1 else ""
                raise InputError(f"{error}{where}") from error
        else:
            stored[name] = shape
    return stored
