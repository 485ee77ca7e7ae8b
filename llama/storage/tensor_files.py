"""Tensors in files: torch's zipped `.pth` and `.bin`, and `.safetensors`.

Opening a file reads its header only: names, dtypes, shapes and offsets. Tensors are then mapped
from the disk, so that a process reads just the parts that it uses, and a file can be larger than
the memory. (`torch.load(mmap=True)` maps the file as private memory of the process, which Linux
refuses for a file larger than the memory.) Writing goes block by block.

    file = open_tensors(Folder("Llama-3.2-1B"), "consolidated.00.pth")
    file.tensors["norm.weight"].shape               # (2048,)
    file.tensors["norm.weight"].map()               # a Tensor over the file's bytes

A file is data, never code: a pickle may contain a dictionary of tensors, and anything else in it
is an error (stricter than `weights_only` of `torch.load`).
"""

import errno
import io
import json
import math
import mmap
import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from llama.errors import InputError
from llama.storage import huge_pages
from llama.storage.files import AGAIN, Folder, atomic_write, what_it_is

# The dtypes of weights, by their names in safetensors and in torch's pickles.
_SAFETENSORS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,  # these two of packed weights
    "IntStorage": torch.int32,
}
_COMPUTED = "weights should be in " + ", ".join(_SAFETENSORS)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
# By default Linux reserves memory for all of a private mapping, as if it were written to.
_MAP_FLAGS = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)  # MAP_NORESERVE


class TensorFile:
    """An open file of tensors.

    tensors     its tensors by name
    saved_as    the name, without suffix, under which torch wrote a `.pth`, where it says so
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        self.where = folder.where(name)
        self.size = folder.size(name)
        self.tensors: dict[str, StoredTensor] = {}
        self.saved_as: str | None = None
        self.records: dict[str, zipfile.ZipInfo] = {}
        self._mapping: mmap.mmap | None = None

    def offset_of(self, record: str | int) -> int:
        """The offset of a storage's bytes, which in a zip follow a header of the record."""
        if isinstance(record, int):
            return record
        start = self.records[record].header_offset
        with open(self.folder.local(self.name), "rb") as file:
            file.seek(start)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise InputError(f"{self.where} does not have {record} at its offset; {AGAIN}")
        name_and_extra = struct.unpack("<HH", header[26:30])
        return start + 30 + sum(name_and_extra)

    def map(self, offset: int, nbytes: int, keep: bool) -> tuple[mmap.mmap, int]:
        """A mapping that contains these bytes, and their offset in it.

        With `keep` all share one mapping of the whole file, since each mapping costs a file
        descriptor. Without, each has its own, which is unmapped with the tensor.
        """
        if offset + nbytes > self.size:
            raise InputError(
                f"{self.where} should have at least {offset + nbytes:,} bytes; {AGAIN}"
            )
        if not keep:
            start = offset - offset % mmap.ALLOCATIONGRANULARITY
            return self._map(start, offset + nbytes - start), offset - start
        if self._mapping is None:
            self._mapping = self._map(0, self.size)
            huge_pages.ask(self._mapping)
        return self._mapping, offset

    def _map(self, start: int, length: int) -> mmap.mmap:
        with open(self.folder.local(self.name), "rb") as file:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), length, flags=_MAP_FLAGS, prot=protection, offset=start)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. Tied tensors are equal."""

    file: TensorFile = field(repr=False)
    record: str | int  # of its storage: the name of a zip's member, else the offset of its bytes
    start: int  # within the storage, in elements, as are the strides
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, keep: bool = False) -> Tensor:
        """The tensor over the bytes of the file. Changes to it do not reach the file."""
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        count = _extent(self.shape, self.stride)
        size = self.dtype.itemsize
        offset = self.file.offset_of(self.record) + self.start * size
        mapping, at = self.file.map(offset, count * size, keep)
        flat = torch.frombuffer(mapping, dtype=torch.uint8, count=count * size, offset=at)
        if flat.data_ptr() % size:  # safetensors does not align
            flat = flat.clone()
        return flat.view(self.dtype).as_strided(self.shape, self.stride)

    def region(self, region: tuple[slice, ...], keep: bool = False) -> Tensor:
        """A region of it, over the bytes of the file."""
        return self.map(keep)[region]


def open_tensors(folder: Folder, name: str) -> TensorFile:
    """Reads the header of a file of tensors. Raises InputError, naming it, for a damaged one."""
    file = TensorFile(folder, name)
    kind = ".safetensors" if name.endswith(".safetensors") else ".pth"
    with folder.open(name) as stream:
        try:
            (_read_safetensors if kind == ".safetensors" else _read_zip)(file, stream)
        except _Refused as error:
            raise InputError(f"{file.where} {error}") from None
        except (*_MALFORMED, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek before byte 0
                raise
            stream.seek(0)
            head = stream.read(1000)
            if head.startswith(b"PK\x03\x04") and str(error) == "File is not a zip file":
                error = ValueError(
                    "it was cut off, since a .pth ends with the directory of its records"
                )
            what = what_it_is(head) or f"is no complete {kind} file: {error}; {AGAIN}"
            raise InputError(f"{file.where} ({file.size:,} bytes) {what}") from error
    return file


class _Refused(Exception):
    """A complete file with content that is not supported."""


_MALFORMED = (
    *(struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError),
    *(zipfile.BadZipFile, pickle.UnpicklingError, zlib.error),
    *(NotImplementedError, RuntimeError, OverflowError, MemoryError),  # encrypted, nested, huge
)


def _read_safetensors(file: TensorFile, stream: BinaryIO) -> None:
    """8 bytes: the length of the header; the header, in JSON; the bytes of the tensors."""
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > file.size - 8:
        raise InputError(f"its header should have {length:,} bytes")
    header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS:
            raise _Refused(f"holds {name} in {entry['dtype']}; {_COMPUTED}")
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _SAFETENSORS[entry["dtype"]]
        tensor = StoredTensor(file, 8 + length + begin, 0, dtype, shape, _contiguous(shape))
        if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise InputError(f"{name} has shape {shape} at {begin} to {end}")
        if tensor.nbytes != end - begin:
            raise InputError(f"{name} of shape {shape} has {end - begin:,} bytes")
        if 8 + length + end > file.size:
            raise InputError(f"{name} should end at byte {8 + length + end:,}: it was cut off")
        file.tensors[name] = tensor
    at = 8 + length
    for name, tensor in sorted(file.tensors.items(), key=lambda t: (t[1].record, t[1].nbytes)):
        if tensor.record != at:
            raise InputError(f"{name} should begin where the one before it ends, at byte {at:,}")
        at += tensor.nbytes


def _read_zip(file: TensorFile, stream: BinaryIO) -> None:
    """torch's format since 1.6: NAME/data.pkl, and the bytes in NAME/data/0, 1, ..."""
    if stream.read(len(_LEGACY)) == _LEGACY:
        raise _Refused("is in torch's format before 1.6; load it there and save it again")
    with zipfile.ZipFile(stream) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if not any(info.CRC for info in records.values()):  # torch can omit them
            for info in records.values():
                info.CRC = None  # type: ignore[assignment]
        (pickled,) = (name for name in records if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("was written on a big-endian machine; save it again on another")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)))
        unpickler.file, unpickler.root, unpickler.records = file, root, records
        tensors = unpickler.load()
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, StoredTensor)
        for name, tensor in tensors.items()
    ):
        raise _Refused("should contain a dictionary of tensors, and contains something else")
    file.tensors, file.records, file.saved_as = dict(tensors), records, root.rstrip("/")


class _Unpickler(pickle.Unpickler):
    """Executes only what a dictionary of tensors consists of."""

    file: TensorFile
    root: str
    records: dict[str, zipfile.ZipInfo]

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name.endswith("Storage"):
            raise _Refused(f"holds a {name}; {_COMPUTED}")
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            raise _Refused(f"holds a tensor of a dtype that is newer; {_COMPUTED}")
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }
        if f"{module}.{name}" not in known:
            raise _Refused(
                f"holds {module}.{name} beside tensors, and opening that could run code, so it was "
                "not opened; use a checkpoint from a source you trust"
            )
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count = pid
        record = f"{self.root}data/{key}"
        info = self.records[record]
        if kind != "storage" or info.file_size < count * dtype.itemsize:
            raise InputError(f"{record} has {info.file_size:,} bytes for {count:,} numbers")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Refused("is compressed, so it can't be mapped; save it again with torch.save")
        return record, dtype, count

    def _tensor(self, storage: Any, start: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        record, dtype, count = storage
        if min((start, *shape, *stride)) < 0 or start + _extent(shape, stride) > count:
            raise InputError(f"{record} has {count:,} numbers, too few for the shape {shape}")
        return StoredTensor(self.file, record, start, dtype, tuple(shape), tuple(stride))


@dataclass(eq=False)
class Entry:
    """A tensor to be written. An entry under two names is stored once, if the format can.

    `blocks` yields its rows in order, in tensors of any number of rows.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, stream: Any, written: Callable[[int], object]) -> None:
        count = 0
        for block in self.blocks():
            assert block.dtype == self.dtype
            data = block.detach().contiguous().flatten().view(torch.uint8).numpy()
            stream.write(data.data)
            written(data.nbytes)
            count += data.nbytes
        assert count == self.nbytes, "the blocks are not the tensor"


def write_tensors(
    path: Path, entries: Mapping[str, Entry], written: Callable[[int], object] = lambda n: None
) -> None:
    """Writes a `.pth` or a `.safetensors` file, by the suffix, block by block and atomically.

    `written` gets the number of bytes of each block that was written.
    """
    with atomic_write(path) as stream:
        if path.suffix == ".safetensors":
            _write_safetensors(stream, entries, written)
        else:
            _write_zip(stream, path.stem, entries, written)


def _write_safetensors(
    stream: BinaryIO, entries: Mapping[str, Entry], written: Callable[[int], object]
) -> None:
    names = {dtype: name for name, dtype in _SAFETENSORS.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + entry.nbytes
        header[name] = {
            "dtype": names[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)  # so that the tensors begin at a multiple of 8, and more
    stream.write(struct.pack("<Q", len(text)) + text)
    for entry in entries.values():
        entry.write(stream, written)


def _write_zip(
    stream: BinaryIO, root: str, entries: Mapping[str, Entry], written: Callable[[int], object]
) -> None:
    keys = {entry: str(i) for i, entry in enumerate(dict.fromkeys(entries.values()))}
    pickled = io.BytesIO()
    pickler = _Pickler(pickled, protocol=2)
    pickler.keys = keys
    pickler.dump(dict(entries))
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled.getvalue())
        archive.writestr(f"{root}/byteorder", "little")
        for entry, key in keys.items():
            info = zipfile.ZipInfo(f"{root}/data/{key}")
            # As torch does it, the bytes begin at a multiple of 64: a field of the header is as
            # long as that takes. 30 and 20 bytes are the rest of the header (zip's APPNOTE, 4.3.7).
            used = stream.tell() + 30 + len(info.filename) + 20 + 4
            info.extra = struct.pack("<HH", 0x4246, -used % 64) + b"Z" * (-used % 64)
            with archive.open(info, "w", force_zip64=True) as record:
                entry.write(record, written)
        archive.writestr(f"{root}/version", "3\n")


class _Storage(NamedTuple):
    entry: Entry


class _Pickler(pickle.Pickler):
    """Writes entries as torch writes tensors, by reference to records of the zip."""

    keys: dict[Entry, str]

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Entry):
            return NotImplemented
        no_hooks: OrderedDict[str, Any] = OrderedDict()
        made_of = _Storage(obj), 0, obj.shape, _contiguous(obj.shape), False, no_hooks
        return torch._utils._rebuild_tensor_v2, made_of

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        (name,) = (name for name, dtype in _STORAGES.items() if dtype == obj.entry.dtype)
        count = math.prod(obj.entry.shape)
        return "storage", getattr(torch, name), self.keys[obj.entry], "cpu", count


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The number of elements of a storage from a tensor's first to its last."""
    if not math.prod(shape):
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
