"""bf12: bfloat16 matrices in 12 bits a weight, without loss, and the reference implementation.

    packed = pack_bf12(weight)            # weight (n, k) in bfloat16, of any values
    unpack_bf12(packed)                   # the same, bit for bit

The high byte of a bfloat16 number, its sign and most of its exponent, takes few values in a row of
trained weights. A row has a table of the 16 most frequent ones, and a weight is its low byte with a
4-bit index into the table; the few that are not in the table, escapes, are listed apart.
`csrc/bf12_matmul.c` describes the layout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llama.errors import InputError
from llama.kernels import bindings
from llama.storage import huge_pages

BLOCK, _BLOCK_BYTES, _TABLE = 128, 192, 16  # inputs of a block; as in csrc/bf12_matmul.c
# A matrix of more escapes a weight, or with less than an eighth of its bytes saved, gains nothing.
MAX_ESCAPES = 1 / 1000
_MAX_BYTES = 7 / 8
_MAX_COLUMNS = 2**23  # that the words of escapes can say


class Bf12(NamedTuple):
    """A matrix (n, k) of bfloat16 in 12 bits a weight, with k = `columns`.

    blocks   uint8 (n, k / 128 rounded up, 192): low bytes and indices
    tables   uint8 (n, 16): the high bytes that indices stand for
    starts   int32 (n + 1): row r has the escapes from starts[r] to starts[r + 1]
    escapes  int32 (escapes): 256 * input + high byte
    """

    columns: int
    blocks: Tensor
    tables: Tensor
    starts: Tensor
    escapes: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it consists of, in the order in which kernels take them."""
        return self[1:]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.blocks), self.columns

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def gains(self) -> bool:
        """Whether it is smaller than bfloat16 and multiplied faster: escapes cost time."""
        return gains(self.shape, len(self.escapes))


def bf12_shapes(shape: tuple[int, int], escapes: int) -> tuple[tuple[int, ...], ...]:
    """Of the four tensors of a matrix of that shape."""
    n, k = shape
    return (n, -(-k // BLOCK), _BLOCK_BYTES), (n, _TABLE), (n + 1,), (escapes,)


def gains(shape: tuple[int, int], escapes: int) -> bool:
    """Whether 12 bits are worth it for a matrix with so many escapes."""
    n, k = shape
    return escapes <= MAX_ESCAPES * n * k and _size(shape, escapes) <= _MAX_BYTES * 2 * n * k


def stored_bytes(shape: tuple[int, int]) -> int:
    """Of a matrix without escapes: in 12 bits if it gains by that, else in bfloat16."""
    return _size(shape, 0) if gains(shape, 0) else 2 * shape[0] * shape[1]


def _size(shape: tuple[int, int], escapes: int) -> int:
    n, k = shape
    return n * (-(-k // BLOCK) * _BLOCK_BYTES + _TABLE + 4) + 4 * (escapes + 1)


def pack_bf12(weight: Tensor) -> Bf12:
    """A bfloat16 matrix (n, k) in 12 bits a weight, whether it gains or not."""
    n, k = weight.shape
    if k > _MAX_COLUMNS:
        raise InputError(f"a matrix of {n} x {k} can't be packed in 12 bits: its rows are too long")
    weight = weight.contiguous()
    native = bindings.library("inference")
    if native is None:
        return _pack_reference(weight)
    tables = torch.empty(n, _TABLE, dtype=torch.uint8)
    counts = torch.empty(n, dtype=torch.int32)
    native.find_bf12_tables(weight.data_ptr(), n, k, tables.data_ptr(), counts.data_ptr())
    starts = _starts(counts)
    shape, *_ = bf12_shapes((n, k), 0)
    blocks = torch.empty(shape, dtype=torch.uint8)
    escapes = torch.empty(int(starts[-1]), dtype=torch.int32)
    pointers = (t.data_ptr() for t in (tables, starts, blocks, escapes))
    native.pack_bf12(weight.data_ptr(), n, k, *pointers)
    return Bf12(k, blocks, tables, starts, escapes)


def unpack_bf12(
    weight: Bf12, rows: Tensor | slice = slice(None), out: Tensor | None = None
) -> Tensor:
    """The matrix in bfloat16, or some rows of it: a slice, or int64 indices (count,).

    It is written to `out`, contiguous, if that is given. Raises IndexError for an index that the
    matrix does not have.
    """
    n, k = weight.shape
    if isinstance(rows, Tensor):
        rows = rows.contiguous()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n:
            raise IndexError(f"a row index lies outside of the {n} rows of the matrix")
        first, count = 0, len(rows)
    else:
        first, end, _ = rows.indices(n)
        count = max(end - first, 0)
    native = bindings.library("inference")
    if native is None:
        if isinstance(rows, slice):
            rows = torch.arange(first, first + count)
        y = _unpack_reference(weight, rows)
        return y if out is None else out.copy_(y)
    y = torch.empty(count, k, dtype=torch.bfloat16) if out is None else out
    assert y.shape == (count, k)
    assert y.is_contiguous()
    indices = rows.data_ptr() if isinstance(rows, Tensor) else None
    pointers = (tensor.data_ptr() for tensor in weight.tensors)
    native.unpack_bf12(*pointers, k, indices, first, count, y.data_ptr())
    return y


def check_bf12(weight: Bf12) -> None:
    """Raises ValueError where `starts` or `escapes`, of a damaged file, lead out of the matrix."""
    starts, escapes = weight.starts, weight.escapes
    if starts[0] != 0 or starts[-1] != len(escapes) or (starts.diff() < 0).any():
        raise InputError(f"starts do not divide {len(escapes)} escapes into rows")
    columns = escapes >> 8
    inside = (columns >= 0) & (columns < weight.columns)
    is_first = torch.zeros(len(escapes) + 1, dtype=torch.bool)
    is_first[starts.long()] = True
    ascends = is_first[1:-1] | (columns.diff() > 0)
    if not inside.all() or not ascends.all():
        raise InputError(f"escapes do not name inputs of a matrix of {weight.columns} in order")


def cut_bf12(weight: Bf12, rows: slice, columns: slice) -> Bf12 | None:
    """Rows and columns of a matrix, over the same memory where it can be.

    None where columns do not lie on the borders of blocks.
    """
    begin, end = columns.start, columns.stop
    if begin % BLOCK or (end % BLOCK and end != weight.columns):
        return None
    blocks = weight.blocks[rows, begin // BLOCK : -(-end // BLOCK)].contiguous()
    starts = weight.starts[rows.start : rows.stop + 1]
    escapes = weight.escapes[int(starts[0]) : int(starts[-1])]
    if (begin, end) != (0, weight.columns):
        kept = (escapes >> 8 >= begin) & (escapes >> 8 < end)
        before = _starts(kept.int())
        starts = before[(starts - starts[0]).long()]
        escapes = escapes[kept] - (begin << 8)
    return Bf12(end - begin, blocks, weight.tables[rows], starts - starts[0], escapes)


def join_bf12(weights: Sequence[Bf12]) -> Bf12:
    """Matrices of as many columns below each other."""
    columns, blocks, tables, all_starts, all_escapes = zip(*weights, strict=True)
    starts, total = [torch.zeros(1, dtype=torch.int32)], 0
    for each, escapes in zip(all_starts, all_escapes, strict=True):
        starts.append(each[1:] + total)
        total += len(escapes)
    whole = huge_pages.empty((sum(map(len, blocks)), *blocks[0].shape[1:]), torch.uint8)
    torch.cat(blocks, out=whole)
    escapes = torch.cat(all_escapes)
    return Bf12(columns[0], whole, torch.cat(tables), torch.cat(starts), escapes)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)))


def _pack_reference(weight: Tensor) -> Bf12:
    n, k = weight.shape
    bits = weight.view(torch.int16).int()
    high = bits >> 8 & 255
    counts = torch.zeros(n, 256, dtype=torch.int64)
    counts.scatter_add_(1, high.long(), torch.ones_like(high, dtype=torch.int64))
    frequent, tables = counts.sort(dim=1, descending=True, stable=True)
    tables = tables[:, :_TABLE].masked_fill(frequent[:, :_TABLE] == 0, 0)
    index_of = torch.full((n, 256), _TABLE)
    for i in reversed(range(_TABLE)):
        index_of.scatter_(1, tables[:, i : i + 1], i)
    index = index_of.gather(1, high.long())
    is_escape = index == _TABLE
    columns = is_escape.nonzero()[:, 1].int()
    escapes = columns << 8 | high[is_escape]
    (_, blocks, _), *_ = bf12_shapes((n, k), 0)
    padded = torch.zeros(2, n, blocks * BLOCK, dtype=torch.uint8)  # low bytes and indices
    padded[0, :, :k], padded[1, :, :k] = bits & 255, index.masked_fill(is_escape, 0)
    # Half blocks of 64 are two times four units of 8, which lie unit by unit side by side.
    units = padded.view(2, n, blocks, 2, 2, 4, 8).transpose(4, 5).reshape(2, n, blocks, 2, 64)
    first, second = units[1].unbind(2)
    data = torch.cat((units[0].flatten(2), first | second << 4), dim=2)
    starts = _starts(is_escape.sum(1, dtype=torch.int32))
    return Bf12(k, data, tables.to(torch.uint8), starts, escapes)


def _unpack_reference(weight: Bf12, rows: Tensor) -> Tensor:
    data, tables = weight.blocks[rows], weight.tables[rows]
    n, blocks, _ = data.shape
    both = data[:, :, BLOCK:]
    units = torch.stack((data[:, :, :BLOCK], torch.cat((both & 15, both >> 4), dim=2)))
    in_order = units.view(2, n, blocks, 2, 4, 2, 8).transpose(4, 5).reshape(2, n, blocks * BLOCK)
    low, index = in_order[:, :, : weight.columns]
    high = tables.gather(1, index.long())
    begin, counts = weight.starts[rows], weight.starts[rows + 1] - weight.starts[rows]
    row = torch.arange(n).repeat_interleave(counts)
    first = begin - torch.cat((counts.new_zeros(1), counts.cumsum(0)[:-1]))
    words = weight.escapes[torch.arange(len(row)) + first.repeat_interleave(counts)]
    high[row, words.long() >> 8] = (words & 255).to(torch.uint8)
    return torch.stack((low, high), dim=-1).view(torch.bfloat16).squeeze(-1)
