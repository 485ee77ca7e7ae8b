"""The KV cache: keys and values of the positions so far.

The caller owns it (the engine keeps one row a request) and the model receives it. Another kind of
cache is another class with `seq_len`, `view`, `layer` and `update`; `model.py` does not change.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama.errors import InputError

_BLOCK = 256  # positions that are dequantized at a time


@dataclass
class KVCache:
    """Keys and values, two tensors (layers, batch, n_kv_heads, seq, head_dim).

    `view` and `layer` share memory with the cache they come from.
    """

    k: Tensor
    v: Tensor

    @classmethod
    def zeros(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> "KVCache":
        """Zeros, for masked values are multiplied too, and 0 * NaN is NaN."""
        with torch.inference_mode(False):  # inference tensors can't be written to outside of it
            return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv"))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the cache, (layers, batch, n_kv_heads, seq, ...) each."""
        return self.k, self.v

    @property
    def batch_size(self) -> int:
        return self.k.shape[-4]

    @property
    def seq_len(self) -> int:
        return self.k.shape[-2]

    def suits(self, like: Tensor) -> bool:
        """Whether it has the dtype and the device of `like`."""
        return (self.k.dtype, self.k.device) == (like.dtype, like.device)

    def view(self, first_row: int, rows: int, length: int) -> "KVCache":
        """`rows` rows from `first_row` on, and of each the first `length` positions.

        Raises ValueError where there are not that many.
        """
        if first_row + rows > self.batch_size or not 0 < length <= self.seq_len:
            raise InputError(
                f"{first_row + rows} rows of {length} positions do not fit a KV cache for "
                f"{self.batch_size} (max_batch_size) of {self.seq_len} (max_seq_len)"
            )
        window = (slice(None), slice(first_row, first_row + rows), slice(None), slice(length))
        return type(self)(*(tensor[window] for tensor in self.tensors))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Overwrites a row by the first `length` positions of another."""
        for tensor in self.tensors:
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def clear_row(self, row: int) -> None:
        """Zeros a row, after values that are not finite: masking does not undo those."""
        for tensor in self.tensors:
            tensor[:, row] = 0

    def read(self, start: int, end: int) -> tuple[Tensor, ...]:
        """A copy of what the first row has at positions `start` to `end` - 1."""
        return tuple(part[:, 0, :, start:end].clone() for part in self.tensors)

    def write(self, start: int, tensors: tuple[Tensor, ...]) -> None:
        """Overwrites the first row from `start` on by what `read` returned."""
        for part, tensor in zip(self.tensors, tensors, strict=True):
            part[:, 0, :, start : start + tensor.shape[2]] = tensor

    def copy_from(self, smaller: "KVCache") -> None:
        """Copies all rows and positions of a cache that is no larger."""
        window = (slice(None), slice(smaller.batch_size), slice(None), slice(smaller.seq_len))
        for tensor, other in zip(self.tensors, smaller.tensors, strict=True):
            tensor[window] = other

    def layer(self, index: int) -> "KVCache":
        """The cache of one layer, (batch, n_kv_heads, seq, head_dim), as `Attention` takes it."""
        return type(self)(*(tensor[index] for tensor in self.tensors))

    def update(self, start_pos: int | Tensor, xk: Tensor, xv: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `xk` and `xv` (batch, seq, heads, head_dim) in one layer, from `start_pos` on.

        `start_pos` is one position, or (batch,) where rows differ. Returns all keys and values of
        the layer, (batch, n_kv_heads, seq, head_dim).
        """
        rows, positions = _rows_and_positions(start_pos, xk)
        self.k[rows, :, positions] = xk.type_as(self.k)
        self.v[rows, :, positions] = xv.type_as(self.v)
        return self.k, self.v


@dataclass
class RaggedKVCache:
    """The rows of a decode step, each in a cache of its own and of its own length.

    A cache may be there several times: for consecutive tokens of a sequence. Native kernels take
    it; plain torch runs such rows one by one.
    """

    rows: list[KVCache]
    index: int = -1  # the layer
    shared: dict[str, Any] = field(default_factory=dict)  # what the views of all layers have

    @property
    def seq_len(self) -> int:
        return max(row.seq_len for row in self.rows)

    def view(self, first_row: int, rows: int, length: int) -> "RaggedKVCache":
        """All of it, which is what a forward pass of all its rows needs."""
        if (first_row, rows) != (0, len(self.rows)):
            raise InputError(f"{rows} rows do not fit a ragged KV cache of {len(self.rows)}")
        return self

    def layer(self, index: int) -> "RaggedKVCache":
        """One layer's part."""
        return RaggedKVCache(self.rows, index, self.shared)

    def suits(self, like: Tensor) -> bool:
        """Whether the rows have the dtype and the device of `like`."""
        return all(row.suits(like) for row in self.rows)


@dataclass
class Int8KVCache(KVCache):
    """Keys and values in int8, with a scale for each position of a head: about half of bfloat16.

    A head's numbers at a position are rounded to multiples of their largest magnitude / 127. A
    number that is not finite makes the scale NaN, and with it the numbers that are read.
    """

    k_scale: Tensor  # float32 (layers, batch, n_kv_heads, seq, 1)
    v_scale: Tensor

    @classmethod
    def zeros(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> "Int8KVCache":
        """As `KVCache.zeros`; `dtype` is the model's."""
        numbers = KVCache.zeros(shape, torch.int8, device)
        scales = KVCache.zeros((*shape[:-1], 1), torch.float32, device)
        return cls(*numbers.tensors, *scales.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """As `KVCache.tensors`."""
        return self.k, self.v, self.k_scale, self.v_scale

    def suits(self, like: Tensor) -> bool:
        """Whether it has the device of `like`."""
        return self.k.device == like.device

    def update(self, start_pos: int | Tensor, xk: Tensor, xv: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.update`; keys and values come back rounded, in the dtype of `xk`.

        Past the longest row they are zeros on a CPU, which then reads and converts no more than
        attention needs. A GPU would have to wait to know that length.
        """
        rows, positions = _rows_and_positions(start_pos, xk)
        length = int(positions.max()) + 1 if self.k.device.type == "cpu" else self.seq_len
        keys_values = []
        for numbers, scales, x in ((self.k, self.k_scale, xk), (self.v, self.v_scale, xv)):
            wide = x.float()
            largest = wide.abs().amax(-1, keepdim=True)
            scale = torch.where(largest.isfinite(), largest / 127, math.nan)
            rounded = (wide * (127 / largest.clamp(min=1e-30))).round().nan_to_num(0)
            numbers[rows, :, positions] = rounded.to(torch.int8)
            scales[rows, :, positions] = scale
            keys_values.append(_dequantize(numbers, scales, length, x.dtype))
        keys, values = keys_values
        return keys, values


def _dequantize(numbers: Tensor, scales: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """numbers * scales of the first `length` positions, then zeros: (batch, heads, seq, dim).

    On a CPU a product in float32 becomes another dtype by way of a copy: by blocks, it is small.
    """
    result = numbers.new_zeros(numbers.shape, dtype=dtype)
    step = _BLOCK if numbers.device.type == "cpu" else length
    for start in range(0, length, step):
        block = (slice(None), slice(None), slice(start, min(start + step, length)))
        torch.mul(numbers[block], scales[block], out=result[block])
    return result


def _rows_and_positions(start_pos: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and positions of a cache that the tokens of `x` (batch, seq, ...) take."""
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    start = start_pos.unsqueeze(1) if isinstance(start_pos, Tensor) else start_pos
    return rows, start + torch.arange(x.shape[1], device=x.device)  # (seq,) or (batch, seq)
