"""int8 and int4 weights on an NVIDIA GPU, in the layout of torch's own int4 kernel.

    packed = kernels.pack(weight, bits=4)               # on a CPU, or from a folder
    y = repack(packed, torch.device("cuda")).times(x)   # x (rows, k) in bfloat16

The kernel knows groups of 32 inputs, as we have them, with a scale and an offset in bfloat16:

    value = (u - 8) * scale + offset                    # u of 0 to 15

For int4 that is our format, but for the scale: float16 has three bits more, so that values differ
by up to 1/512 of themselves, as much as bfloat16 weights do. An int8 number is two of int4: with
u = 16 * high + low, the matrix (n, k) is (n, 2 k) with all high nibbles before the low ones,

    (u - 128) * s = (high - 8) * 16 s + ((low - 8) * s + 8 s)

and inputs are repeated. So int4 takes 5 bits a weight and int8 takes 10. Many rows, a prompt, are
multiplied by unpacked weights, of the same scales.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama import kernels
from llama.kernels import GROUP, Packed

MIN_CAPABILITY = (8, 0)  # compute capability with tensor cores for bfloat16
_MAX_ROWS = 256  # above, unpacking the weights first costs less than the kernel's smaller tiles
_BLOCK_TILES = 256  # of 16 outputs: repacking takes little memory beside its result

_to_tiles = torch.ops.aten._convert_weight_to_int4pack
_matmul = torch.ops.aten._weight_int4pack_mm


class CudaPacked(NamedTuple):
    """A matrix (n, k) for torch's int4 kernel, with K = k in int4 and 2 k in int8.

    tiles   int32 (n / 8, K / 16 / t, 32, t / 2) with t = 2, 4 or 8, as tensor cores read them
    scales  bfloat16 (K / 32, n, 2), a scale and an offset
    """

    tiles: Tensor
    scales: Tensor
    bits: int

    def times(self, x: Tensor) -> Tensor:
        """x (rows, k) times the matrix, (rows, n), both in bfloat16."""
        if len(x) > _MAX_ROWS or torch.is_grad_enabled():
            return F.linear(x, self.unpack())
        return _matmul(x.repeat(1, self.bits // 4), self.tiles, GROUP, self.scales)

    def unpack(self) -> Tensor:
        """The matrix (n, k) in bfloat16."""
        # 32 numbers of an output lie in four words, one for each c. The number 8 i + 2 c + h is the
        # (4 h + i)-th nibble of its word, from the lowest on: (h, i / 2) is the byte.
        outer, steps, _, _ = self.tiles.shape
        data = self.tiles.view(torch.uint8).view(outer, steps, 8, 4, -1, 2, 2)
        nibbles = torch.stack(
            (data & 15, data >> 4), dim=-1
        )  # (outer, steps, 8, c, words, h, i, i)
        values = nibbles.permute(0, 2, 1, 4, 6, 7, 3, 5).reshape(outer * 8, -1)
        if self.bits == 8:
            high, low = values.chunk(2, dim=1)
            values = high << 4 | low
        groups = values.bfloat16().sub_(2 ** (self.bits - 1)).unflatten(1, (-1, GROUP))
        scales = self.scales[-groups.shape[1] :, :, 0].t()  # of int8's low nibbles
        return groups.mul_(scales.unsqueeze(-1)).flatten(1)


def repack(weight: Packed, device: torch.device) -> CudaPacked:
    """The same matrix on a GPU."""
    blocks = zip(*(tensor.split(_BLOCK_TILES) for tensor in weight), strict=True)
    tiles, scales = zip(*(_repack_block(Packed(*block), device) for block in blocks), strict=True)
    return CudaPacked(torch.cat(tiles), torch.cat(scales, dim=1), weight.bits)


def _repack_block(weight: Packed, device: torch.device) -> tuple[Tensor, Tensor]:
    data, scales = (tensor.to(device) for tensor in weight)
    values, bits = _nibbles(Packed(data, scales)), weight.bits
    pairs = values[:, ::2] << 4 | values[:, 1::2]  # the first of two is a byte's high nibble
    steps = next(steps for steps in (8, 4, 2) if values.shape[1] % (16 * steps) == 0)
    s = scales.transpose(0, 1).flatten(1).float()  # (k / 32, n)
    lines = [(s, 0 * s)] if bits == 4 else [(16 * s, 0 * s), (s, 8 * s)]
    table = torch.cat([torch.stack(line, dim=-1) for line in lines])
    return _to_tiles(pairs, steps), table.bfloat16()


def _nibbles(weight: Packed) -> Tensor:
    """The numbers without scales, 0 to 15: uint8 (n, k), or (n, 2 k) where they are int8."""
    plain = kernels.unpack(weight._replace(scales=torch.ones_like(weight.scales)))
    values = (plain + 2 ** (weight.bits - 1)).to(torch.uint8)
    return values if weight.bits == 4 else torch.cat((values >> 4, values & 15), dim=1)
