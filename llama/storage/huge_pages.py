"""Memory in pages of 2 MB, for weights.

A decoded token reads all weights. In pages of 4 kB a gigabyte has 262,144 addresses, more than a
processor keeps, and it waits for the others to be looked up. Linux gives larger pages to memory
that asks for them, and to a mapped file when it reads it from the disk.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

_PAGE = 2 << 20


def ask(mapping: mmap.mmap) -> None:
    """Asks for large pages; a kernel without them refuses."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.empty` on a CPU, for memory that is kept.

    Where free memory is in pieces, Linux moves others' pages first, up to a second for a gigabyte.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ask(mapping)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)
