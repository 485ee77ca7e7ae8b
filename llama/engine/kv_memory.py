"""The memory of the KV cache: a budget in bytes that running requests share.

Each request has a cache of one row, which grows as its answer does. What does not fit into the
budget waits, or is preempted until there is room (see `scheduler.py`).
"""

from llama import distributed
from llama.cache import KVCache
from llama.model import Transformer

# Positions; a row's length is a multiple. Keys are attended to in whole blocks, those past a row's
# end masked: kernels add up what they read block by block, so a row's sums come out alike whatever
# the length of the rows beside it.
BLOCK = 64
_SHARE = 0.5  # of the free memory, for the default budget


class KVMemory:
    """Rows of `model`'s cache, at most `budget` bytes of them; half of what is free if None."""

    def __init__(self, model: Transformer, budget: int | None = None) -> None:
        self._model = model
        block = model.new_cache(1, BLOCK)
        self.position_bytes = sum(part.nbytes for part in block.tensors) // BLOCK
        self.budget = (
            int(_SHARE * distributed.free_memory(block.k.device)) if budget is None else budget
        )
        self.used = 0

    @property
    def positions(self) -> int:
        """How many positions the budget holds."""
        return self.budget // (self.position_bytes * BLOCK) * BLOCK

    def new_row(self, length: int) -> KVCache | None:
        """A row for `length` positions; None if it does not fit now."""
        length = whole_blocks(length)
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


def whole_blocks(length: int) -> int:
    """`length`, rounded up to a multiple of `BLOCK`."""
    return -(-length // BLOCK) * BLOCK
