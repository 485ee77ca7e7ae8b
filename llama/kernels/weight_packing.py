"""int8 and int4 matrices as the kernels read them, and the reference implementation in torch.

    packed = pack(weight, bits=4)         # weight (n, k) in bfloat16
    unpack(packed)                        # (n, k) in bfloat16, as near as 4 bits allow

`csrc/matmul.c` describes the layout.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llama.errors import InputError
from llama.kernels import bindings

TILE, GROUP = 16, 32  # outputs side by side, and inputs that share a scale; as in csrc/matmul.h


class Packed(NamedTuple):
    """A matrix (n, k) in int8 or int4.

    `data` is uint8 (n / 16, k / 32, 512 or 256), `scales` float16 (n / 16, k / 32, 16).
    """

    data: Tensor
    scales: Tensor

    @property
    def bits(self) -> int:
        return self.data.shape[-1] // (GROUP * TILE // 8)

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0] * TILE, self.data.shape[1] * GROUP


def packed_shapes(n: int, k: int, bits: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of `Packed`'s two tensors. Raises ValueError for a matrix that does not divide into tiles."""
    if n % TILE or k % GROUP:
        raise InputError(f"a matrix of {n} x {k} can't be packed in tiles of {TILE} x {GROUP}")
    return (n // TILE, k // GROUP, GROUP * TILE * bits // 8), (n // TILE, k // GROUP, TILE)


def pack(weight: Tensor, bits: int) -> Packed:
    """Rounds a bfloat16 matrix (n, k) to int8 or int4, in groups of 32 inputs with a scale each.

    An int8 group is scaled by its largest absolute value; int4 reaches from -8 to 7 and takes, of
    four scales, the one with the least squared error. Raises ValueError unless n is a multiple of
    16 and k of 32.
    """
    n, k = weight.shape
    data_shape, scales_shape = packed_shapes(n, k, bits)
    native = bindings.library("inference")
    if native is None:
        return _pack_reference(weight, bits)
    data = torch.empty(data_shape, dtype=torch.uint8)
    scales = torch.empty(scales_shape, dtype=torch.float16)
    weight = weight.contiguous()
    native.pack_weight(weight.data_ptr(), data.data_ptr(), scales.data_ptr(), n, k, bits)
    return Packed(data, scales)


def unpack(weight: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix (n, k) that packed weights stand for."""
    (n, k), bits = weight.shape, weight.bits
    tiles = weight.data.view(n // TILE, k // GROUP, -1, TILE, 4).permute(0, 3, 1, 2, 4)
    if bits == 4:
        tiles = torch.stack((tiles & 15, tiles >> 4), dim=3)
    values = tiles.reshape(n, k // GROUP, GROUP).float().sub_(2 ** (bits - 1))
    scales = weight.scales.transpose(1, 2).reshape(n, k // GROUP, 1)
    return values.mul_(scales.float()).to(dtype).view(n, k)


def round_inputs(x: Tensor) -> Tensor:
    """Inputs (rows, k) as kernels round them: to int8 in groups, and back to float32."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.tensor(127.0) / largest.masked_fill(largest == 0, 1)  # 127 / x rounds twice
    return ((groups * inverse).round() * (largest / 127)).flatten(-2)


def _pack_reference(weight: Tensor, bits: int) -> Packed:
    n, k = weight.shape
    groups = weight.float().view(n, k // GROUP, GROUP)
    largest = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(-1) / 127).half() if bits == 8 else _best_scales(groups)
    values = _divide(groups, scales).round_().clamp_(-largest - (bits == 4), largest)
    unsigned = (values + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 8:
        tiles = unsigned.view(n // TILE, TILE, k // GROUP, 8, 4)
    else:
        nibbles = unsigned.view(n // TILE, TILE, k // GROUP, 2, 4, 4)
        tiles = nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4
    data = tiles.permute(0, 2, 3, 1, 4).flatten(2).contiguous()
    return Packed(data, scales.view(n // TILE, TILE, -1).transpose(1, 2).contiguous())


def _best_scales(groups: Tensor) -> Tensor:
    """float16 (n, groups): the value of largest magnitude becomes -8, or a little less."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    candidates = torch.stack([(largest / -reach).half() for reach in (8.0, 7.6, 7.2, 6.8)])
    errors = [
        (_divide(groups, scales).round_().clamp_(-8, 7) * scales.unsqueeze(-1) - groups)
        .square_()
        .sum(-1)
        for scales in candidates
    ]
    best = torch.stack(errors).argmin(0, keepdim=True)  # the first of equals
    return candidates.gather(0, best).squeeze(0)


def _divide(groups: Tensor, scales: Tensor) -> Tensor:
    return groups / scales.float().masked_fill(scales == 0, 1).unsqueeze(-1)
