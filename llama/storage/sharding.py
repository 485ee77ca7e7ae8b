"""Whole weights that are stored in shards, and the region of one that a rank holds.

Shapes alone say which dimension was cut. A weight of (8, 6), stored in 2 shards of (4, 6), for 3
ranks with layers of (8, 2):

    the whole          its shards             rank 1 reads
    0 1 2 3 4 5        shard 0: rows 0-3      columns 2-3 of both shards,
    . . . . . .        shard 1: rows 4-7      one above the other
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llama.storage import huggingface_names
from llama.storage.tensor_files import StoredTensor

Region = tuple[slice, ...]  # of a weight: a slice with start and stop for each dimension

_BLOCK = 64 * 2**20  # bytes that `blocks` reads at a time


@dataclasses.dataclass(eq=False)
class Weight:
    """A whole weight and its shards, each with the indices of its first element.

    `head_dim` is set where the rows are those of rotary heads in Hugging Face's order; they are
    read in Meta's.
    """

    shape: tuple[int, ...]
    shards: list[tuple[tuple[int, ...], StoredTensor]]
    head_dim: int | None = None

    @classmethod
    def whole(cls, stored: StoredTensor, head_dim: int | None = None) -> "Weight":
        """A weight that is stored in one tensor."""
        return cls(stored.shape, [((0,) * len(stored.shape), stored)], head_dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.shards[0][1].dtype

    def read(self, region: Region, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A region of the weight: the mapped file itself where possible, else a single copy."""
        if (device.type, dtype) == ("cpu", self.dtype):
            mapped = self._mapped(region, keep=True)
            if mapped is not None and mapped.is_contiguous():
                return mapped
        size = [cut.stop - cut.start for cut in region]
        result = torch.empty(size, dtype=dtype, device=device)
        for target, source, stored in self._overlaps(region):
            values = stored.region(source)
            if self.head_dim:
                values = huggingface_names.rows_to_meta(values, self.head_dim)
            result[target].view(values.shape).copy_(values)
        return result

    def blocks(self, region: Region, dtype: torch.dtype, multiple: int = 1) -> Iterator[Tensor]:
        """The same in blocks of rows, a multiple of `multiple` each, so that memory stays small."""
        rows, *others = region
        row_bytes = math.prod(cut.stop - cut.start for cut in others) * dtype.itemsize
        multiple = math.lcm(multiple, self.head_dim or 1)
        step = max(_BLOCK // row_bytes // multiple, 1) * multiple
        for start in range(rows.start, rows.stop, step):
            block = (slice(start, min(start + step, rows.stop)), *others)
            mapped = self._mapped(block, keep=False)
            if mapped is not None:
                yield mapped.to(dtype)
            else:
                yield self.read(block, torch.device("cpu"), dtype)

    def _mapped(self, region: Region, keep: bool) -> Tensor | None:
        """The region over the bytes of a file, if one shard has all of it in Meta's order."""
        shard = self.only_shard(region)
        return None if shard is None else shard[1].region(shard[0], keep)

    def only_shard(self, region: Region) -> tuple[Region, StoredTensor] | None:
        """Where in which shard the region lies, if one has all of it in Meta's order."""
        found = list(self._overlaps(region))
        if self.head_dim or len(found) != 1:
            return None
        _, source, stored = found[0]
        return source, stored

    def _overlaps(self, region: Region) -> Iterator[tuple[Region, Region, StoredTensor]]:
        """Each shard that overlaps `region`: where within the region, where within the shard."""
        for start, stored in self.shards:
            common = [
                slice(max(cut.start, at), min(cut.stop, at + size))
                for cut, at, size in zip(region, start, stored.shape, strict=True)
            ]
            if all(cut.start < cut.stop for cut in common):
                begin = [cut.start for cut in region]
                yield _relative(common, begin), _relative(common, start), stored


def _relative(region: Sequence[slice], origin: Sequence[int]) -> Region:
    """The same region with indices that start at `origin`."""
    return tuple(slice(c.start - o, c.stop - o) for c, o in zip(region, origin, strict=True))


def share(whole: tuple[int, ...], local: tuple[int, ...], rank: int, ranks: int) -> Region:
    """The region of a weight that one of `ranks` holds, from its whole and its local shape.

    With fewer shards than ranks (KV heads), neighbouring ranks hold the same one.
    """
    starts = [rank * (n // m) // ranks * m for n, m in zip(whole, local, strict=True)]
    return tuple(slice(start, start + m) for start, m in zip(starts, local, strict=True))
