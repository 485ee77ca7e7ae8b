"""The KV cache: what attention remembers of the positions so far.

The caller owns it (the engine keeps one row a request) and the model receives it. Another kind of
cache is another class with `seq_len`, `view`, `layer` and `update`; `model.py` does not change.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.errors import InputError


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
        """Zeros, not garbage: a masked value still gets multiplied, and 0 * NaN is NaN."""
        with torch.inference_mode(False):  # such a tensor could not be written to outside of it
            return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv"))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that is kept, (layers, batch, n_kv_heads, seq, ...) each."""
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
        return type(self)(*(part[window] for part in self.parts))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Overwrites a row by the first `length` positions of another."""
        for part in self.parts:
            part[:, target, :, :length] = part[:, source, :, :length]

    def clear_row(self, row: int) -> None:
        """Zeros a row, after values that are not finite: masking does not undo those."""
        for part in self.parts:
            part[:, row] = 0

    def copy_from(self, smaller: "KVCache") -> None:
        """Takes over all rows and positions of a cache that is no larger."""
        window = (slice(None), slice(smaller.batch_size), slice(None), slice(smaller.seq_len))
        for part, other in zip(self.parts, smaller.parts, strict=True):
            part[window] = other

    def layer(self, index: int) -> "KVCache":
        """One layer's part, (batch, n_kv_heads, seq, head_dim), as `Attention` takes it."""
        return type(self)(*(part[index] for part in self.parts))

    def update(self, start_pos: int | Tensor, xk: Tensor, xv: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `xk` and `xv` (batch, seq, heads, head_dim) in a layer's part from `start_pos` on.

        `start_pos` is one position, or (batch,) where rows differ. Returns all keys and values of
        the part, (batch, n_kv_heads, seq, head_dim).
        """
        rows, positions = _places(start_pos, xk)
        self.k[rows, :, positions] = xk.type_as(self.k)
        self.v[rows, :, positions] = xv.type_as(self.v)
        return self.k, self.v


@dataclass
class Int8KVCache(KVCache):
    """Keys and values in int8, with a scale for each position of a head: near half of bfloat16.

    A head's numbers at a position are rounded to steps of the largest / 127. What is not finite
    makes the scale NaN, and with it what is read.
    """

    k_scale: Tensor  # float32 (layers, batch, n_kv_heads, seq, 1)
    v_scale: Tensor

    @classmethod
    def zeros(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> "Int8KVCache":
        """As `KVCache.zeros`; `dtype` is the model's."""
        numbers = KVCache.zeros(shape, torch.int8, device)
        return cls(*numbers.parts, *KVCache.zeros((*shape[:-1], 1), torch.float32, device).parts)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """As `KVCache.parts`."""
        return self.k, self.v, self.k_scale, self.v_scale

    def suits(self, like: Tensor) -> bool:
        """Whether it has the device of `like`."""
        return self.k.device == like.device

    def update(self, start_pos: int | Tensor, xk: Tensor, xv: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.update`; keys and values come back rounded, in the dtype of `xk`."""
        at = _places(start_pos, xk)
        both = (self.k, self.k_scale, xk), (self.v, self.v_scale, xv)
        for numbers, scales, x in both:
            wide = x.float()
            most = wide.abs().amax(-1, keepdim=True)
            scale = torch.where(most.isfinite(), most / 127, math.nan)
            rounded = (wide * (127 / most.clamp(min=1e-30))).round().nan_to_num(0)
            numbers[at[0], :, at[1]] = rounded.to(torch.int8)
            scales[at[0], :, at[1]] = scale
        k, v = ((numbers * scales).type_as(xk) for numbers, scales, _ in both)
        return k, v


def _places(start_pos: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions in a cache that the tokens of `x` (batch, seq, ...) take."""
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    start = start_pos.unsqueeze(1) if isinstance(start_pos, Tensor) else start_pos
    return rows, start + torch.arange(x.shape[1], device=x.device)  # (seq,) or (batch, seq)
