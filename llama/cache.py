"""The KV cache: what attention remembers of the positions so far.

The caller owns it (the engine keeps one row a request) and the model receives it. Another kind of
cache is another class with `seq_len`, `view`, `layer` and `update`; `model.py` does not change.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
            raise ValueError(
                f"{first_row + rows} rows of {length} positions do not fit a KV cache for "
                f"{self.batch_size} (max_batch_size) of {self.seq_len} (max_seq_len)"
            )
        window = (slice(None), slice(first_row, first_row + rows), slice(None), slice(length))
        return KVCache(self.k[window], self.v[window])

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Overwrites a row by the first `length` positions of another."""
        for part in (self.k, self.v):
            part[:, target, :, :length] = part[:, source, :, :length]

    def clear_row(self, row: int) -> None:
        """Zeros a row, after values that are not finite: masking does not undo those."""
        self.k[:, row] = 0
        self.v[:, row] = 0

    def copy_from(self, smaller: "KVCache") -> None:
        """Takes over all rows and positions of a cache that is no larger."""
        window = (slice(None), slice(smaller.batch_size), slice(None), slice(smaller.seq_len))
        self.k[window], self.v[window] = smaller.k, smaller.v

    def layer(self, index: int) -> "KVCache":
        """One layer's part, (batch, n_kv_heads, seq, head_dim), as `Attention` takes it."""
        return KVCache(self.k[index], self.v[index])

    def update(self, start_pos: int | Tensor, xk: Tensor, xv: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `xk` and `xv` (batch, seq, heads, head_dim) in a layer's part from `start_pos` on.

        `start_pos` is one position, or (batch,) where rows differ. Returns all keys and values of
        the part, (batch, n_kv_heads, seq, head_dim).
        """
        rows = torch.arange(len(xk), device=xk.device).unsqueeze(1)
        start = start_pos.unsqueeze(1) if isinstance(start_pos, Tensor) else start_pos
        positions = start + torch.arange(xk.shape[1], device=xk.device)  # (seq,) or (batch, seq)
        self.k[rows, :, positions] = xk.type_as(self.k)
        self.v[rows, :, positions] = xv.type_as(self.v)
        return self.k, self.v
