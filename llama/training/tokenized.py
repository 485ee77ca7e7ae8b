"""Tokenized text, written once to a file beside its source and memory-mapped by training.

    documents = tokenize("data/", tokenizer)     # writes data/stories.txt.3f9c01aa.tokens, ...
    documents[7]                                 # a Document, read from there
    documents.lengths                            # tokens of each

The digits in the name are a hash of the tokenizer's file, so each tokenizer has its own tokens. A
file is rewritten when the text or the tokenizer has changed, or when it is damaged. It goes to the
cache where the folder is read-only. Its layout:

    4096 bytes    a line of JSON: what it was made from, and counts
    uint32        the id of each token, the top bit set if it counts in the loss
    int64         from a multiple of 8 bytes on: the offset of each document and the end of the
                  last; then for each document the number of its tokens that count in the loss
"""

import contextlib
import errno
import functools
import glob
import hashlib
import itertools
import json
import operator
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, overload

import filelock
import numpy as np
import torch

from llama import console
from llama.dialog import ToolFormat
from llama.errors import InputError
from llama.storage.files import atomic_write, cache_root, read_bytes
from llama.tokenizer import Tokenizer
from llama.training.documents import BadLines, Document, Raw, find_sources, raw_document, read_raw
from llama.training.worker_pool import worker_map

_FORMAT = 1  # changes when the same text would give another file
_HEADER_BYTES = 4096
_IN_LOSS = np.uint32(1 << 31)
_BATCH_BYTES = 2**20  # tokenized at a time
_WORKER_BYTES = 2**26  # a worker takes as long to start as to tokenize this
_MAX_WORKERS = 32  # one reader feeds no more
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class TokenArrays(NamedTuple):
    """Concatenated documents: tokens (m,) uint32, offsets (n + 1,) int64, and per document its
    number of loss tokens (n,) int64; and of a file, what `BadLines` counted when it was made.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_loss_tokens: np.ndarray
    skipped: int = 0
    first_skipped: str = ""


class Documents(Sequence[Document]):
    """Documents in arrays, memory-mapped or in memory.

    lengths            tokens of each, int64 (n,)
    num_loss_tokens    how many of those count in the loss, int64 (n,); the first never does
    """

    def __init__(self, arrays: Sequence[TokenArrays]) -> None:
        self._arrays = list(arrays)
        none = np.zeros(0, np.int64)
        self.lengths = np.concatenate([none, *(np.diff(a.offsets) for a in arrays)])
        self.num_loss_tokens = np.concatenate([none, *(a.num_loss_tokens for a in arrays)])
        self._ends = np.cumsum([len(a.num_loss_tokens) for a in arrays])

    @classmethod
    def of(cls, documents: Iterable[Document]) -> "Documents":
        """The same documents in one array, which takes less memory than many tensors."""
        packed = [_packed(document) for document in documents]
        offsets = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        num_loss_tokens = np.array([np.sum(ids[1:] >= _IN_LOSS) for ids in packed], np.int64)
        tokens = np.concatenate([np.zeros(0, np.uint32), *packed])
        return cls([TokenArrays(tokens, offsets, num_loss_tokens)])

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
        return self.segment(position, 0, int(self.lengths[position]))

    def segment(self, index: int, start: int, stop: int) -> Document:
        """Tokens `start` to `stop` of a document, without reading the others."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        arrays = self._arrays[file]
        first = int(arrays.offsets[index - self._ends[file] + len(arrays.num_loss_tokens)])
        packed = np.asarray(arrays.tokens[first + start : first + stop])
        ids, loss_mask = (packed & ~_IN_LOSS).astype(np.int32), packed >= _IN_LOSS
        return Document(torch.from_numpy(ids), torch.from_numpy(loss_mask))


def _packed(document: Document) -> np.ndarray:
    tokens = document.tokens.numpy().astype(np.uint32)
    return tokens | np.where(document.loss_mask.numpy(), _IN_LOSS, np.uint32(0))


def tokenize(
    data_path: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    skip_bad_lines: bool = False,
    workers: int | None = None,
    tool_format: ToolFormat = "json",
) -> Documents:
    """The documents of all `find_sources(data_path)`, in order.

    `tool_format` is how the model's dialogs offer functions and call them (see `ChatFormat`).

    New text is tokenized by `workers` processes; by default in this one if it is little, else by
    one process per core. Of several callers at the same time one works and the others wait. Workers
    import the running script, so it needs the usual `if __name__ == "__main__":`.

    Raises ValueError for a bad line, naming it, unless `skip_bad_lines` counts them instead, and
    for a source without documents; FileNotFoundError where there is no source; OSError for a full
    disk or a source that changes while it is read.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} should be 1 or more")
    digest = hashlib.sha256(read_bytes(tokenizer.model_path)).hexdigest()
    sources = [_Source.of(path, digest, tool_format) for path in find_sources(data_path)]
    stale = [source for source in sources if source.opened() is None]
    if stale:
        stale.sort(key=lambda source: source.target.parent)
        size = sum(source.size for source in stale)
        if workers is None:
            workers = max(1, min(cpu_cores(), size // _WORKER_BYTES, _MAX_WORKERS))
        bar = console.progress(size, "Tokenizing", any_rank=True)
        with bar, worker_map(functools.partial(_encode, tokenizer, tool_format), workers) as encode:
            for folder, group in itertools.groupby(stale, key=lambda s: s.target.parent):
                with _locked(folder):
                    missing = [source for source in group if source.opened() is None]
                    _build(missing, tokenizer.block_chars, encode, skip_bad_lines, bar.update)
    arrays = []
    for source in sources:
        opened = source.opened()
        if opened is None:
            raise OSError(f"{source.target} was removed or changed meanwhile; run it again")
        bad = BadLines(source.path, skip_bad_lines, opened.skipped, opened.first_skipped)
        bad.check()
        bad.report()
        arrays.append(opened)
    return Documents(arrays)


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Source:
    """A text file as it was found, and the `target` file of its tokens."""

    path: Path
    size: int
    mtime_ns: int
    tokenizer: str  # SHA-256 of its file
    tool_format: ToolFormat
    target: Path

    @classmethod
    def of(cls, path: Path, tokenizer: str, tool_format: ToolFormat) -> "_Source":
        found = path.stat()
        name = f"{path.name}.{tokenizer[:8]}.tokens"
        at = path.with_name(name)
        beside = cls(path, found.st_size, found.st_mtime_ns, tokenizer, tool_format, at)
        if beside.opened() or _is_writable(path.parent):
            return beside
        where = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
        return replace(beside, target=cache_root() / "tokens" / f"{where}-{name}")

    def stamp(self) -> dict[str, int | str]:
        """Header fields that say which text and tokenizer the tokens are from."""
        return {
            "format": _FORMAT,
            "tokenizer": self.tokenizer,
            "tool_format": self.tool_format,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
        }

    def opened(self) -> TokenArrays | None:
        """The tokens, or None where they are missing, outdated or damaged."""
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
        offsets, num_loss_tokens = np.split(np.frombuffer(index, np.dtype("<i8")), [documents + 1])
        skipped = header["skipped"], header["first_skipped"]
        return TokenArrays(tokens, offsets, num_loss_tokens, *skipped)


def _index_at(tokens: int) -> int:
    return _HEADER_BYTES + -(-4 * tokens // 8) * 8


def _is_writable(folder: Path) -> bool:
    """By writing: on network file systems the permissions don't decide alone."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in _READ_ONLY:
            return False
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time write tokens into a folder."""
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
            path.unlink()  # while it is held: a waiting process sees that and makes a new one
        lock.release()


class _Batch(NamedTuple):
    """Some texts or lines of a source, `nbytes` long there."""

    source: int
    raw: list[Raw]
    nbytes: int


class _Encoded(NamedTuple):
    """The tokens of a batch, one segment for each text, line or block of a text.

    A segment is its length, its number of loss tokens, and whether its document begins with it.
    """

    source: int
    nbytes: int
    tokens: np.ndarray
    segments: list[tuple[int, int, bool]]
    bad: list[tuple[int, str]]  # lines, and what is wrong with them


def _build(
    sources: Sequence[_Source],
    block_chars: int | None,
    encode: Callable[[Iterable[_Batch]], Iterator[_Encoded]],
    skip_bad_lines: bool,
    written: Callable[[int], object],
) -> None:
    """Writes the tokens of sources whose targets are in one folder."""
    bad = [BadLines(source.path, skip_bad_lines) for source in sources]
    batches = (
        batch
        for number, source in enumerate(sources)
        for batch in _batches(number, read_raw(source.path, bad[number], block_chars))
    )
    for number, encoded in itertools.groupby(encode(batches), key=lambda e: e.source):
        _write(sources[number], encoded, bad[number], written)


def _batches(source: int, raw: Iterable[Raw]) -> Iterator[_Batch]:
    """At least one batch, since a source without documents is an error to be found."""
    some: list[Raw] = []
    nbytes = 0
    for item in raw:
        content = item.content
        some.append(item)
        nbytes += len(content if isinstance(content, bytes) else content.encode())
        if nbytes >= _BATCH_BYTES:
            yield _Batch(source, some, nbytes)
            some, nbytes = [], 0
    yield _Batch(source, some, nbytes)


def _encode(tokenizer: Tokenizer, tool_format: ToolFormat, batch: _Batch) -> _Encoded:
    packed, segments, bad = [np.zeros(0, np.uint32)], [], []
    for raw in batch.raw:
        try:
            document = raw_document(tokenizer, raw, tool_format)
        except InputError as error:
            bad.append((raw.line, str(error)))
            continue
        if document is not None:
            packed.append(_packed(document))
            segments.append((len(document), int(document.loss_mask.sum()), raw.begins))
    return _Encoded(batch.source, batch.nbytes, np.concatenate(packed), segments, bad)


def _write(
    source: _Source, batches: Iterable[_Encoded], bad: BadLines, written: Callable[[int], object]
) -> None:
    lengths: list[int] = []
    num_loss_tokens: list[int] = []
    for abandoned in source.target.parent.glob(f".{glob.escape(source.target.name)}.*.part"):
        abandoned.unlink()  # by a process that was killed; the folder is locked
    with atomic_write(source.target) as file:
        file.write(bytes(_HEADER_BYTES))
        for batch in batches:
            for line, reason in batch.bad:
                bad.add(line, reason)
            file.write(batch.tokens.astype("<u4", copy=False).tobytes())
            for length, count, begins in batch.segments:
                if begins:
                    lengths.append(0)
                    num_loss_tokens.append(0)
                lengths[-1] += length
                num_loss_tokens[-1] += count
            written(batch.nbytes)
        if not lengths:
            reason = f": {bad.first}" if bad.count else ", only blank lines"
            raise InputError(f"{source.path} has no document to train on{reason}")
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        index = np.concatenate([offsets, num_loss_tokens]).astype("<i8").tobytes()
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
