"""Text is tokenized once: the tokens lie in a file beside it, which training maps into memory.

    documents = tokenize("data/", tokenizer)     # writes data/stories.txt.3f9c01aa.tokens, ...
    documents[7]                                 # a Document, read from there
    documents.lengths                            # tokens of each

The digits in the name are those of the tokenizer's file, so that each tokenizer has its own tokens.
They are made anew when the text or the tokenizer has changed, and when they are damaged. Where the
folder cannot be written they lie in the cache. In such a file are

    4096 bytes    a line of JSON: what it was made from, and counts
    uint32        for each token its id, with the top bit set if it is to be learned
    int64         from a multiple of 8 on: where each document begins, and where the last ends;
                  then for each how many of its tokens are learned
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import operator
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

import numpy as np
import torch

from llama import console
from llama.errors import InputError
from llama.storage.files import cache_root, read_bytes
from llama.tokenizer import Tokenizer
from llama.training.documents import BadLines, Document, Raw, find_sources, raw_document, read_raw
from llama.training.workers import worker_map

_FORMAT = 1  # changes when the same text would give another file
_HEADER_BYTES = 4096
_LEARN = np.uint32(1 << 31)
_BATCH_CHARS = 2**20  # what is tokenized at a time
_WORKER_BYTES = 2**26  # a worker takes as long to start as to tokenize this
_MAX_WORKERS = 32  # no more can be fed
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TokenArrays(NamedTuple):
    """Documents side by side: tokens (m,) uint32, offsets (n + 1,) and learned (n,), int64."""

    tokens: np.ndarray
    offsets: np.ndarray
    learned: np.ndarray


class Documents(Sequence[Document]):
    """Documents that lie in arrays, mapped from files or in memory.

    lengths    tokens of each, int64 (n,)
    learned    how many of those have to be predicted, int64 (n,): the first one never has
    """

    def __init__(self, arrays: Sequence[TokenArrays]) -> None:
        self._arrays = list(arrays)
        none = np.zeros(0, np.int64)
        self.lengths = np.concatenate([none, *(np.diff(a.offsets) for a in arrays)])
        self.learned = np.concatenate([none, *(a.learned for a in arrays)])
        self._ends = np.cumsum([len(a.learned) for a in arrays])

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Documents":
        """The same documents in one array, which takes less memory than many tensors."""
        packed = [_packed(document) for document in documents]
        offsets = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        learned = np.array([_learned(tokens) for tokens in packed], np.int64)
        tokens = np.concatenate([np.zeros(0, np.uint32), *packed])
        return cls([TokenArrays(tokens, offsets, learned)])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.piece(position, 0, int(self.lengths[position]))

    def piece(self, index: int, start: int, stop: int) -> Document:
        """Tokens `start` to `stop` of a document, without reading the others."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        tokens, offsets, learned = self._arrays[file]
        first = int(offsets[index - self._ends[file] + len(learned)])
        packed = np.asarray(tokens[first + start : first + stop])
        ids, learn = (packed & ~_LEARN).astype(np.int32), packed >= _LEARN
        return Document(torch.from_numpy(ids), torch.from_numpy(learn))


def _packed(document: Document) -> np.ndarray:
    tokens = document.tokens.numpy().astype(np.uint32)
    return tokens | np.where(document.learn.numpy(), _LEARN, np.uint32(0))


def _learned(packed: np.ndarray) -> int:
    return int((packed[1:] >= _LEARN).sum())


def tokenize(
    data_path: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    skip_bad_lines: bool = False,
    workers: int | None = None,
) -> Documents:
    """The documents of all `find_sources(data_path)`, in order.

    What is not tokenized yet is, by `workers` processes; without a number, by this one if there is
    little of it, else by as many as there are cores. Of several processes that call this at the
    same time one works, the others wait. Workers import the script that is running, so it needs the
    usual `if __name__ == "__main__":`.

    Raises ValueError for a bad line, which is named, unless `skip_bad_lines` has them counted, and
    for a source without documents; FileNotFoundError where there is no source; OSError for a full
    disk or a source that changes while it is read.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: at least one process has to tokenize")
    digest = hashlib.sha256(read_bytes(tokenizer.model_path)).hexdigest()
    sources = [_Source.of(path, digest) for path in find_sources(data_path)]
    stale = [source for source in sources if source.opened() is None]
    if stale:
        stale.sort(key=lambda source: source.target.parent)
        size = sum(source.size for source in stale)
        if workers is None:
            workers = max(1, min(_cores(), size // _WORKER_BYTES, _MAX_WORKERS))
        bar = console.progress(size, "Tokenizing", any_rank=True)
        with bar, _encoder(tokenizer, workers) as encode:
            for folder, group in itertools.groupby(stale, key=lambda s: s.target.parent):
                with _alone_in(folder):
                    missing = [source for source in group if source.opened() is None]
                    _build(missing, tokenizer.block_chars, encode, skip_bad_lines, bar.update)
    arrays = []
    for source in sources:
        opened = source.opened()
        if opened is None:
            raise OSError(f"{source.target} was removed or changed by others; run it again")
        bad = BadLines(source.path, skip_bad_lines, opened.skipped, opened.first_skipped)
        bad.check()
        bad.report()
        arrays.append(opened.arrays)
    return Documents(arrays)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Opened(NamedTuple):
    arrays: TokenArrays
    skipped: int
    first_skipped: str  # where, and why


@dataclass(frozen=True)
class _Source:
    """A file as it was found, and where its tokens belong."""

    path: Path
    size: int
    mtime_ns: int
    tokenizer: str  # SHA-256 of its file
    target: Path

    @classmethod
    def of(cls, path: Path, tokenizer: str) -> "_Source":
        found = path.stat()
        name = f"{path.name}.{tokenizer[:8]}.tokens"
        beside = cls(path, found.st_size, found.st_mtime_ns, tokenizer, path.with_name(name))
        if beside.opened() or _is_writable(path.parent):
            return beside
        where = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
        target = cache_root() / "tokens" / f"{where}-{name}"
        return cls(path, found.st_size, found.st_mtime_ns, tokenizer, target)

    def stamp(self) -> dict[str, int | str]:
        """What has to be the same for the tokens to be those of the source."""
        source = {"size": self.size, "mtime_ns": self.mtime_ns}
        return {"format": _FORMAT, "tokenizer": self.tokenizer, **source}

    def opened(self) -> _Opened | None:
        """The tokens, unless there are none, or those of something else, or damaged ones."""
        try:
            with self.target.open("rb") as file:
                header = json.loads(file.read(_HEADER_BYTES))
                if any(header[key] != value for key, value in self.stamp().items()):
                    return None
                count, documents = header["tokens"], header["documents"]
                file.seek(_index_at(count))
                index = file.read()
            if len(index) != 8 * (2 * documents + 1) or zlib.crc32(index) != header["crc"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        tokens = np.memmap(self.target, np.dtype("<u4"), "r", _HEADER_BYTES, (count,))
        offsets, learned = np.split(np.frombuffer(index, np.dtype("<i8")), [documents + 1])
        arrays = TokenArrays(tokens, offsets, learned)
        return _Opened(arrays, header["skipped"], header["first_skipped"])


def _index_at(tokens: int) -> int:
    return _HEADER_BYTES + -(-4 * tokens // 8) * 8


def _is_writable(folder: Path) -> bool:
    """By trying: what the permissions say is not all that counts on a network's file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in _READ_ONLY:
            return False
        raise


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of several processes that write into a folder lets one do so, while the others wait."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".tokens.lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=5)
    except filelock.Timeout:
        console.notice(f"waiting for another process that tokenizes in {folder}")
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for it finds out, and makes a new one
        lock.release()


class _Batch(NamedTuple):
    """Some of what a source holds; `nbytes` long there."""

    source: int
    raw: list[Raw]
    nbytes: int


class _Encoded(NamedTuple):
    """The tokens of a batch, and of each part: how many, how many are learned, does it end."""

    source: int
    nbytes: int
    tokens: np.ndarray
    parts: list[tuple[int, int, bool]]
    bad: list[tuple[int, str]]  # lines, and what is wrong with them


def _build(
    sources: Sequence[_Source],
    block_chars: int | None,
    encode: Callable[[Iterable[_Batch]], Iterator[_Encoded]],
    skip_bad_lines: bool,
    written: Callable[[int], object],
) -> None:
    """Writes the tokens of sources that lie, or whose tokens lie, in one folder."""
    bad = [BadLines(source.path, skip_bad_lines) for source in sources]
    batches = (
        batch
        for number, source in enumerate(sources)
        for batch in _batches(number, read_raw(source.path, bad[number], block_chars))
    )
    for number, encoded in itertools.groupby(encode(batches), key=lambda e: e.source):
        _write(sources[number], encoded, bad[number], written)


def _batches(source: int, raw: Iterable[Raw]) -> Iterator[_Batch]:
    """At least one: also a source without documents has to be looked at."""
    some: list[Raw] = []
    nbytes = 0
    for piece in raw:
        content = piece.content
        some.append(piece)
        nbytes += len(content if isinstance(content, bytes) else content.encode())
        if nbytes >= _BATCH_CHARS:
            yield _Batch(source, some, nbytes)
            some, nbytes = [], 0
    yield _Batch(source, some, nbytes)


@contextlib.contextmanager
def _encoder(
    tokenizer: Tokenizer, workers: int
) -> Iterator[Callable[[Iterable[_Batch]], Iterator[_Encoded]]]:
    """Gives a function that encodes batches, in order, here or in worker processes."""
    if workers == 1:
        yield functools.partial(map, functools.partial(_encode, tokenizer))
    else:
        with worker_map(_make_encode, tokenizer.model_path, workers) as encode:
            yield encode


def _make_encode(tokenizer_path: str) -> Callable[[_Batch], _Encoded]:
    return functools.partial(_encode, Tokenizer(tokenizer_path))


def _encode(tokenizer: Tokenizer, batch: _Batch) -> _Encoded:
    packed, parts, bad = [np.zeros(0, np.uint32)], [], []
    for raw in batch.raw:
        try:
            document = raw_document(tokenizer, raw)
        except ValueError as error:
            bad.append((raw.line, str(error)))
            continue
        if document is not None:
            packed.append(_packed(document))
            parts.append((len(document), int(document.learn.sum()), raw.ends))
    return _Encoded(batch.source, batch.nbytes, np.concatenate(packed), parts, bad)


def _write(
    source: _Source, batches: Iterable[_Encoded], bad: BadLines, written: Callable[[int], object]
) -> None:
    lengths: list[int] = []
    learned: list[int] = []
    begins = True
    with replacing(source.target) as file:
        file.write(bytes(_HEADER_BYTES))
        for batch in batches:
            for line, reason in batch.bad:
                bad.add(line, reason)
            file.write(batch.tokens.astype("<u4", copy=False).tobytes())
            for length, count, ends in batch.parts:
                if begins:
                    lengths.append(0)
                    learned.append(0)
                lengths[-1] += length
                learned[-1] += count
                begins = ends
            written(batch.nbytes)
        if not lengths:
            reason = f": {bad.first}" if bad.count else ", only blank lines"
            raise InputError(f"{source.path} has no document to learn from{reason}")
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        index = np.concatenate([offsets, np.array(learned)]).astype("<i8").tobytes()
        count = int(offsets[-1])
        file.write(bytes(_index_at(count) - file.tell()))
        file.write(index)
        header = {
            **source.stamp(),
            "documents": len(lengths),
            "tokens": count,
            "skipped": bad.count,
            "first_skipped": bad.first[:300],  # at most 12 bytes each
            "crc": zlib.crc32(index),
        }
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(_HEADER_BYTES - 1) + b"\n")
        now = source.path.stat()
        if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
            raise OSError(f"{source.path} has changed while it was read; run it again")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when it is whole and on the disk.

    After an error nothing of it is left. Raises OSError for a full disk.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise OSError(f"the disk of {path} is full: {error.strerror}; make room") from error
        raise
