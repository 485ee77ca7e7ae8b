"""The memory of the KV cache: a budget in bytes that running requests share.

Each request has a cache of one row, which grows as its answer does. What does not fit into the
budget waits, or is preempted until there is room (see `scheduler.py`).
"""

import os

import torch

from llama.cache import KVCache
from llama.model import Transformer

_BLOCK = 64  # positions; a row's length is a multiple
_SHARE = 0.5  # of the free memory, for the default budget


class KVMemory:
    """Rows of `model`'s cache, at most `budget` bytes of them; half of what is free if None."""

    def __init__(self, model: Transformer, budget: int | None = None) -> None:
        self._model = model
        block = model.new_cache(1, _BLOCK)
        self.position_bytes = sum(part.nbytes for part in block.tensors) // _BLOCK
        self.budget = int(_SHARE * free_bytes(block.k.device)) if budget is None else budget
        self.used = 0

    @property
    def positions(self) -> int:
        """How many positions the budget holds."""
        return self.budget // (self.position_bytes * _BLOCK) * _BLOCK

    def new_row(self, length: int) -> KVCache | None:
        """A row for `length` positions; None if it does not fit now."""
        length = _rounded_up(length)
        if self.used + length * self.position_bytes > self.budget:
            return None
        self.used += length * self.position_bytes
        return self._model.new_cache(1, length)

    def longer_row(self, row: KVCache, length: int, limit: int) -> KVCache | None:
        """A row for at least `length` positions with the content of `row`, which it replaces.

        It gets a quarter more than `length`, up to `limit`, so that an answer of n tokens is copied
        about log(n) times. None if it does not fit now.
        """
        for wanted in (min(length + length // 4, limit), length):
            self.free(row)
            grown = self.new_row(wanted)
            if grown is not None:
                grown.copy_from(row)
                return grown
            self.used += row.seq_len * self.position_bytes
        return None

    def free(self, row: KVCache) -> None:
        """Returns a row's memory to the budget."""
        self.used -= row.seq_len * self.position_bytes


def free_bytes(device: torch.device) -> int:
    """Bytes that a process may still allocate on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _rounded_up(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
