"""Matrices that files hold in bf12, read as the bfloat16 matrices that they stand for.

    find_matrices(file, shapes, count)                 # the four tensors of each become one
    file.tensors["layers.0.attention.wq.weight"]       # a Bf12Tensor of (2048, 2048), bfloat16
    read_packed(weight, region)                        # a region as it lies in the file
    entries(weight, region, name)                      # what is written for a region

So a checkpoint in bf12 is converted, resharded and loaded in any format as one in bfloat16 is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama import kernels
from llama.errors import InputError
from llama.kernels.bf12_packing import bf12_shapes, check_bf12, cut_bf12, gains, join_bf12
from llama.quantization.packed_formats import BF12_DTYPES
from llama.storage.files import AGAIN
from llama.storage.sharding import Region, Weight
from llama.storage.tensor_files import Entry, StoredTensor, TensorFile


@dataclass(frozen=True)
class Bf12Tensor(StoredTensor):
    """A bfloat16 matrix that a file holds as the four tensors `stored`."""

    name: str = field(compare=False)  # tied tensors have two, and are equal
    stored: tuple[StoredTensor, ...]

    @property
    def escapes(self) -> int:
        """How many weights are listed apart."""
        return self.stored[-1].shape[0]

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored)

    def packed(self, keep: bool = False) -> kernels.Bf12:
        """The matrix over the bytes of the file. Raises InputError for a damaged one."""
        weight = kernels.Bf12(self.shape[1], *(tensor.map(keep) for tensor in self.stored))
        try:
            check_bf12(weight)
        except InputError as error:
            raise InputError(f"{self.name} in {self.file.where}: {error}; {AGAIN}") from error
        return weight

    def region(self, region: Region, keep: bool = False) -> Tensor:
        """Unpacked, so that its memory is its own."""
        rows, *columns = region
        return kernels.unpack_bf12(self.packed(keep), rows)[:, *columns]


def find_matrices(file: TensorFile, shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
    """Puts one `Bf12Tensor` in the place of the four tensors of each matrix of a file.

    `shapes` are those of the whole weights, of which `count` files each hold a shard. Raises
    InputError where tensors are not those of such a matrix.
    """
    for name, whole in shapes.items():
        names = tensor_names(name)
        if not all(key in file.tensors for key in names):
            continue  # what is missing is reported with the names of the rest
        stored = tuple(file.tensors.pop(key) for key in names)
        found = [tensor.shape for tensor in stored]
        rows, columns = found[0][:1], whole[1:]
        if rows == whole[:1]:  # not cut along its rows
            columns = tuple(size // count for size in columns)
        shape: Any = (*rows, *columns)
        is_matrix = len(shape) == 2 and len(found[-1]) == 1
        if not is_matrix or tuple(found) != bf12_shapes(shape, found[-1][0]):
            raise InputError(
                f"{name} in {file.where} is stored in tensors of shapes {found}, which are not "
                f"those of a matrix of {shape} in bf12; {AGAIN}"
            )
        for tensor, (part, dtype) in zip(stored, BF12_DTYPES.items(), strict=True):
            if tensor.dtype != dtype:
                raise InputError(
                    f"{file.where} holds {name}.{part} in {tensor.dtype}, which should be {dtype}"
                )
        record, stride = stored[0].record, (shape[1], 1)
        file.tensors[name] = Bf12Tensor(
            file, record, 0, torch.bfloat16, shape, stride, name=name, stored=stored
        )


def tensor_names(name: str) -> list[str]:
    """The names of the four tensors of a matrix."""
    return [f"{name}.{part}" for part in BF12_DTYPES]


def is_stored_part(name: str) -> bool:
    """Whether a tensor is one of the four of a matrix."""
    return name.rpartition(".")[2] in BF12_DTYPES


def read_packed(weight: Weight, region: Region) -> kernels.Bf12 | None:
    """A region as it lies in a file, mapped where that is possible.

    None for a matrix that is not in bf12, lies in several shards, or is cut between blocks.
    """
    shard = weight.only_shard(region)
    if shard is None or not isinstance(shard[1], Bf12Tensor):
        return None
    rows, columns = shard[0]
    return cut_bf12(shard[1].packed(keep=True), rows, columns)


def entries(
    weight: Weight, region: Region, name: str, read: Callable[[int], object] = lambda n: None
) -> dict[str, Entry] | None:
    """The four tensors to write for a region of a matrix; None where it gains nothing.

    A header comes before the numbers and says how many escapes there are, so that all are packed
    twice: here, without keeping the blocks, and when they are written. `read` gets the number of
    bytes of each block of rows that was read here.
    """
    shape = tuple(cut.stop - cut.start for cut in region)

    def packed_blocks(read: Callable[[int], object] = lambda n: None) -> Iterator[kernels.Bf12]:
        for block in weight.blocks(region, torch.bfloat16):
            yield kernels.pack_bf12(block)
            read(block.nbytes)

    without_blocks: list[kernels.Bf12] = []
    for packed in packed_blocks(read):
        without_blocks.append(packed._replace(blocks=packed.blocks[:0]))
    _, *small = join_bf12(without_blocks).tensors
    shapes = bf12_shapes((shape[0], shape[1]), len(small[-1]))
    if not gains((shape[0], shape[1]), len(small[-1])):
        return None
    written: list[Callable[[], Iterable[Tensor]]] = [
        lambda: (packed.blocks for packed in packed_blocks()),
        *([tensor].copy for tensor in small),
    ]
    each = zip(tensor_names(name), BF12_DTYPES.values(), shapes, written, strict=True)
    return {key: Entry(dtype, size, blocks) for key, dtype, size, blocks in each}


def summary(files: Sequence[TensorFile]) -> str:
    """The share of escapes in all matrices, and which stay bfloat16, in words."""
    plain = [n for f in files for n, t in f.tensors.items() if _is_plain_matrix(t)]
    all_tensors = dict.fromkeys(tensor for file in files for tensor in file.tensors.values())
    packed = [tensor for tensor in all_tensors if isinstance(tensor, Bf12Tensor)]
    weights = sum(math.prod(tensor.shape) for tensor in packed)
    escapes = sum(tensor.escapes for tensor in packed)
    text = (
        f"{escapes:,} of {weights:,} weights in {len(packed)} matrices are escapes "
        f"({escapes / max(weights, 1):.5%})"
    )
    if plain:
        names = ", ".join(dict.fromkeys(plain[:4])) + ", ..." * (len(plain) > 4)
        text += f"; {len(plain)} gain nothing and stay bfloat16: {names}"
    return text


def _is_plain_matrix(tensor: StoredTensor) -> bool:
    return len(tensor.shape) == 2 and not isinstance(tensor, Bf12Tensor)


def pack_rows(blocks: Iterable[Tensor], shape: tuple[int, int]) -> kernels.Bf12 | None:
    """Packs a bfloat16 matrix of that shape by blocks of its rows; None where it gains nothing."""
    if not gains(shape, 0):
        return None
    found: list[kernels.Bf12] = []
    for block in blocks:
        found.append(kernels.pack_bf12(block))
        if not gains(shape, sum(len(packed.escapes) for packed in found)):
            return None
    return join_bf12(found)
