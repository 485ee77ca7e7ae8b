"""Rows for training: of one length, made of whole documents, hardly padded.

    packed = PackedRows(documents, seq_len=8, seed=1)
    for row in packed.rows(start_row): ...            # without end, epoch after epoch
    collate(documents, rows, seq_len=8)               # a batch of such rows

A document of n tokens takes n - 1 places: each of its tokens but the last is an input, each but the
first a target. With a, b, c, d and x, y, z, of which y is not to be learned, a row is

    tokens       a    b    c    x    y    0    0    0
    positions    0    1    2    0    1    0    0    0
    targets      b    c    d    .    z    .    .    .        (. is IGNORED)

From the positions the model sees which inputs belong together (`llama.model.DocumentMask`). A
document longer than a row is cut into pieces, the last input of one being the first of the next.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama.errors import InputError
from llama.training.documents import Document
from llama.training.tokenized import Documents

IGNORED = -100  # what cross_entropy leaves out
_POOL = 4096  # pieces among which the ones that fit are looked for
_INDEX_BITS = 40


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a document: stop - start - 1 inputs."""

    document: int
    start: int
    stop: int


Row = list[Piece]


class Batch(NamedTuple):
    """Rows side by side, int64 (rows, seq_len) each."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor


class PackedRows:
    """Documents in random order in rows of `seq_len` inputs.

    The rows depend on the documents' lengths, `seq_len`, `seed` and the number of the epoch only:
    they are the same in each process and after a restart. Documents with nothing to learn, and such
    pieces of long ones, are in none. Raises ValueError for a `seq_len` below 1.
    """

    def __init__(self, documents: Sequence[Document], seq_len: int, seed: int) -> None:
        if seq_len < 1:
            raise InputError(f"seq_len={seq_len}: a row has at least one token")
        self.seq_len, self.seed = seq_len, seed
        if isinstance(documents, Documents):
            self.lengths, learned = documents.lengths, documents.learned
        else:
            self.lengths = np.array([len(d) for d in documents], np.int64)
            learned = np.array([int(d.learn[1:].sum()) for d in documents], np.int64)
        self._pieces = _cut(documents, self.lengths, learned, seq_len)  # (pieces, 3)
        self._packed: tuple[int, np.ndarray, np.ndarray] | None = None
        self._counts: dict[int, int] = {}

    def rows_in_epoch(self, epoch: int) -> int:
        """The first time it takes two microseconds a document to find out."""
        if epoch not in self._counts:
            self._pack(epoch)
        return self._counts[epoch]

    def epoch(self, number: int, start_row: int = 0) -> Iterator[Row]:
        """One pass over the documents, from one of its rows on."""
        members, bounds = self._pack(number)
        order = _permutation(len(bounds) - 1, self.seed, number, 1)
        for row in order[start_row:].tolist():
            pieces = self._pieces[members[bounds[row] : bounds[row + 1]]]
            yield [Piece(*piece) for piece in pieces.tolist()]

    def rows(self, start_row: int = 0) -> Iterator[Row]:
        """Rows without end, from row `start_row` on, counted through all epochs.

        The epochs before it have to be packed to count theirs, see `rows_in_epoch`. Raises
        ValueError if there is nothing to learn.
        """
        if not len(self._pieces):
            raise InputError("the documents have nothing to learn")
        epoch = 0
        while start_row >= self.rows_in_epoch(epoch):
            start_row -= self.rows_in_epoch(epoch)
            epoch += 1
        while True:
            yield from self.epoch(epoch, start_row)
            epoch, start_row = epoch + 1, 0

    def _pack(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces in the order of rows, and where in that each row begins, and the last one ends."""
        if self._packed is None or self._packed[0] != epoch:
            order = _permutation(len(self._pieces), self.seed, epoch, 0)
            sizes = self._pieces[order, 2] - self._pieces[order, 1] - 1
            members, bounds = _best_fit(sizes, self.seq_len)
            self._packed = epoch, order[members], bounds
            self._counts[epoch] = len(bounds) - 1
        return self._packed[1:]


def _cut(
    documents: Sequence[Document], lengths: np.ndarray, learned: np.ndarray, seq_len: int
) -> np.ndarray:
    """All pieces of at most `seq_len` inputs with something to learn, int64 (pieces, 3)."""
    counts = np.where(learned > 0, -(-(lengths - 1) // seq_len), 0)
    first = np.cumsum(counts) - counts
    document = np.repeat(np.arange(len(lengths)), counts)
    start = (np.arange(len(document)) - first[document]) * seq_len
    stop = np.minimum(start + seq_len + 1, lengths[document])
    keep = np.ones(len(document), np.bool_)
    for index in np.flatnonzero((counts > 1) & (learned < lengths - 1)).tolist():
        learn = documents[index].learn[1:].numpy()
        pieces = slice(first[index], first[index] + counts[index])
        keep[pieces] = np.logical_or.reduceat(learn, np.arange(0, len(learn), seq_len))
    return np.stack((document, start, stop), axis=1)[keep]


def _permutation(count: int, *seeds: int) -> np.ndarray:
    # numpy promises the same bits in all its versions, but not the same permutations.
    return np.argsort(np.random.PCG64(seeds).random_raw(count), kind="stable")


def _best_fit(sizes: np.ndarray, room_in_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `sizes` row after row, and where each row begins, and the last one ends.

    A row begins with the largest piece of a pool. Then comes the largest that fits, if it fills the
    row; if not, the largest that leaves room for one more, of those that are smaller than most.
    (Best fit decreasing, which never leaves room, ends with gaps that nothing is small enough for:
    2 % of stories, where this has 0.3 %.) A quarter of the pool is kept for the next one, so that
    there is choice to the end.
    """
    keys = sizes << _INDEX_BITS | np.arange(len(sizes))  # they sort by size
    almost_full = room_in_row >> 8
    members, ends, count = [np.zeros(0, np.int64)], [0], 0
    pool: list[int] = []
    for begin in range(0, len(keys), _POOL):
        pool = sorted(pool + keys[begin : begin + _POOL].tolist())
        kept = len(pool) // 4 if begin + _POOL < len(keys) else 0
        taken = []
        while len(pool) > kept:
            room, at = room_in_row, len(pool) - 1
            while at >= 0:
                key = pool.pop(at)
                taken.append(key)
                room -= key >> _INDEX_BITS
                at = _largest(pool, room)
                if at >= 0 and room - (pool[at] >> _INDEX_BITS) > almost_full:
                    small = pool[len(pool) // 4] >> _INDEX_BITS
                    leaving_room = _largest(pool, room - small)
                    at = leaving_room if leaving_room >= 0 else at
            ends.append(count + len(taken))
        members.append(np.array(taken, np.int64) & ((1 << _INDEX_BITS) - 1))
        count += len(taken)
    return np.concatenate(members), np.array(ends)


def _largest(pool: list[int], room: int) -> int:
    """Where in the sorted pool the largest piece stands that fits into `room`; -1 if none does."""
    return bisect_left(pool, room + 1 << _INDEX_BITS) - 1


def collate(documents: Sequence[Document], rows: Sequence[Row], seq_len: int) -> Batch:
    """A batch of rows that `PackedRows` of the same documents and `seq_len` gave."""
    tokens = np.zeros((len(rows), seq_len), np.int64)
    targets = np.full((len(rows), seq_len), IGNORED, np.int64)
    positions = np.zeros((len(rows), seq_len), np.int64)
    for row, pieces in enumerate(rows):
        begin = 0
        for index, start, stop in pieces:
            if isinstance(documents, Documents):
                document = documents.piece(index, start, stop)
                ids, learn = document.tokens.numpy(), document.learn.numpy()
            else:
                ids = documents[index].tokens[start:stop].numpy()
                learn = documents[index].learn[start:stop].numpy()
            end = begin + stop - start - 1
            tokens[row, begin:end] = ids[:-1]
            targets[row, begin:end] = np.where(learn[1:], ids[1:], IGNORED)
            positions[row, begin:end] = np.arange(end - begin)
            begin = end
    return Batch(*map(torch.from_numpy, (tokens, targets, positions)))
