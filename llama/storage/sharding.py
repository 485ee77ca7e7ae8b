"""Whole weights whose parts lie in files, and which part of one a rank holds.

What was cut how is seen from the shapes, with no list of names. A weight of (8, 6) that lies in 2
shards of (4, 6) and is wanted by 3 ranks, whose layers say (8, 2):

    the whole          its shards             what rank 1 reads
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

Region = tuple[slice, ...]  # a part of a weight: a slice with start and stop for each dimension

_BLOCK = 64 * 2**20  # bytes that are read at a time where a weight goes from file to file


@dataclasses.dataclass(eq=False)
class Weight:
    """A whole weight, and where its parts lie: each piece with the indices of its first element.

    `head_dim` is set where the rows are those of rotary heads in Hugging Face's order; what is
    read is in Meta's.
    """

    shape: tuple[int, ...]
    pieces: list[tuple[tuple[int, ...], StoredTensor]]
    head_dim: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.pieces[0][1].dtype

    def read(self, region: Region, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A part of the weight: the mapped file where that is the same, else its only copy."""
        if (device.type, dtype) == ("cpu", self.dtype):
            mapped = self._mapped(region, keep=True)
            if mapped is not None and mapped.is_contiguous():
                return mapped
        size = [cut.stop - cut.start for cut in region]
        whole = torch.empty(size, dtype=dtype, device=device)
        for target, within, stored in self._overlaps(region):
            part = stored.map()[within]
            if self.head_dim:
                part = huggingface_names.rows_to_meta(part, self.head_dim)
            whole[target].view(part.shape).copy_(part)
        return whole

    def blocks(self, region: Region, dtype: torch.dtype, multiple: int = 1) -> Iterator[Tensor]:
        """The same by blocks of rows, a `multiple` of so many each: never much memory at a time."""
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
        """The part as it lies in a file, if all of it lies in one and in Meta's order."""
        found = list(self._overlaps(region))
        if self.head_dim or len(found) != 1:
            return None
        _, within, stored = found[0]
        return stored.map(keep)[within]

    def _overlaps(self, region: Region) -> Iterator[tuple[Region, Region, StoredTensor]]:
        """Which part of `region` lies where in which piece."""
        for start, stored in self.pieces:
            common = [
                slice(max(cut.start, at), min(cut.stop, at + size))
                for cut, at, size in zip(region, start, stored.shape, strict=True)
            ]
            if all(cut.start < cut.stop for cut in common):
                begin = [cut.start for cut in region]
                yield _moved(common, begin), _moved(common, start), stored


def _moved(region: Sequence[slice], origin: Sequence[int]) -> Region:
    """The same part, counted from `origin`."""
    return tuple(slice(c.start - o, c.stop - o) for c, o in zip(region, origin, strict=True))


def share(whole: tuple[int, ...], local: tuple[int, ...], rank: int, ranks: int) -> Region:
    """The part of a weight that one of `ranks` holds, given the shapes of both.

    Where there are fewer parts than ranks (KV heads), neighbouring ranks hold the same one.
    """
    starts = [rank * (n // m) // ranks * m for n, m in zip(whole, local, strict=True)]
    return tuple(slice(start, start + m) for start, m in zip(starts, local, strict=True))
