"""Whether a checkpoint is whole and sound: what `llama verify PATH` tells of each of its files.

Loading looks at names, shapes and dtypes only, and takes seconds. Here every byte is read as well,
block by block, and compared with what is known of it:

    checklist.chk             sums of whole files, which Meta publishes beside them
    a .pth                    a checksum (CRC-32) of each tensor, written by torch
    a .safetensors file       has none, so that a changed digit can stay unseen
    any of them               weights are finite, and none consists of zeros

A damage is told once: where bytes differ from their checksum, their values are not looked at.
"""

import dataclasses
import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import tqdm

from llama import console
from llama.checkpoint.opening import Checkpoint, open_checkpoint, tokenizer_in
from llama.errors import InputError
from llama.storage.files import AGAIN, Folder, short_size, what_it_is
from llama.storage.tensor_files import StoredTensor, TensorFile, open_tensors
from llama.tokenizer import Tokenizer

# Which files are weights, where the whole checkpoint can't be opened: the first kind there is.
_WEIGHTS = (r"consolidated\.\d+\.pth", r".*\.safetensors", r"pytorch_model.*\.bin")
_SUM = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64})\s+\*?(?:\./)?(\S.*)")
_BLOCK = 2**24  # bytes read at a time
_NUMBERS = 2**21  # of them looked at together: a list of those that are wrong is longer than they


class Finding(NamedTuple):
    """A line of the report."""

    kind: str  # ok, note or trouble
    text: str


def verify(path: str) -> None:
    """Reads a whole checkpoint, here or remote, and tells of each file that it is fine or is not.

    Raises ValueError where anything is wrong, FileNotFoundError where there is no such folder.
    """
    troubles = 0
    for kind, text in examine(str(path)):
        console.say(text if kind == "ok" else f"{kind}: {text}")
        troubles += kind == "trouble"
    if troubles:
        raise InputError(f"{troubles} trouble{'s' * (troubles > 1)} in {path}")
    console.say(f"{path} is complete and sound")


def examine(path: str) -> Iterator[Finding]:
    """What `verify` prints, line by line as it is found."""
    folder = Folder(path)
    checkpoint, failure = None, ""
    try:
        checkpoint = open_checkpoint(path)
    except (ValueError, OSError) as error:
        failure = str(error)
        yield _trouble(failure)
        yield Finding("note", "more may be wrong behind this: see again when it is mended")
    else:
        params = checkpoint.params.removeprefix(folder.where(""))
        yield _fine(params, f"{checkpoint.parameters:,} parameters")
    weights = _weight_files(folder, checkpoint)
    listed, wrong_lines = _read_lists(folder)
    yield from map(_trouble, wrong_lines)
    damaged = False
    for name in dict.fromkeys([*weights, *listed]):
        named = folder.where(name) in failure
        if named and name not in folder.names:
            continue
        troubles, told = _look_through(folder, name, name in weights, listed.get(name, []))
        damaged = damaged or bool(troubles)
        yield from (_trouble(text) for text in troubles if text != failure)
        if not troubles and not named:
            yield _fine(name, told)
    if checkpoint is not None and not damaged:  # damage would look like another checkpoint's
        try:
            checkpoint.check_shards()
        except (ValueError, OSError) as error:
            yield _trouble(str(error))
    yield _look_at_tokenizer(folder, checkpoint)


def _fine(name: str, told: str) -> Finding:
    return Finding("ok", f"{name}  ok  {told}")


def _trouble(text: str) -> Finding:
    return Finding("trouble", " ".join(text.splitlines()))


def _weight_files(folder: Folder, checkpoint: Checkpoint | None) -> list[str]:
    if checkpoint is not None:
        return [file.name for file in checkpoint.files]
    kinds = ([n for n in folder.names if re.fullmatch(kind, n)] for kind in _WEIGHTS)
    return next(filter(None, kinds), [])


def _read_lists(folder: Folder) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """By the name of a file its sums, each with the list that it is in; and troubles."""
    listed: dict[str, list[tuple[str, str]]] = {}
    troubles = []
    for name in (n for n in folder.names if n.endswith("checklist.chk")):
        try:
            data = folder.read(name)
        except OSError as error:
            troubles.append(str(error))
            continue
        if what := what_it_is(data[:1000]):
            troubles.append(f"{folder.where(name)} {what}")
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            if found := _SUM.fullmatch(line.strip()):
                listed.setdefault(found[2], []).append((found[1].lower(), name))
            elif line.strip():
                troubles.append(
                    f"{folder.where(name)} has a line {number} that is no sum and name of a file: "
                    f"{line:.60}; {AGAIN}"
                )
    return listed, troubles


def _look_through(
    folder: Folder, name: str, holds_weights: bool, sums: list[tuple[str, str]]
) -> tuple[list[str], str]:
    """Troubles with a file, and what there is to tell where there are none."""
    if name not in folder.names:
        return [f"{folder.where(name)} is not there, and {sums[0][1]} lists it"], ""
    told = [short_size(folder.size(name))]
    try:
        file = open_tensors(folder, name) if holds_weights else None
        total = folder.size(name) * (bool(file) + len(sums))
        with console.progress(total, f"Reading {name}") as bar:
            troubles = list(_differing_sums(folder, name, sums, bar))
            told += [f"its sum is that in {listed_in}" for _, listed_in in sums]
            if file is not None:
                troubles += _wrong_tensors(file, bar)
                told.insert(1, f"{len(file.tensors):,} tensors")
    except (ValueError, OSError) as error:
        where = folder.where(name)
        return [str(error) if where in str(error) else f"{where} cannot be read: {error}"], ""
    return troubles, ", ".join(told)


def _differing_sums(
    folder: Folder, name: str, sums: list[tuple[str, str]], bar: tqdm.tqdm
) -> Iterator[str]:
    for expected, listed_in in sums:
        kind = "md5" if len(expected) == 32 else "sha256"
        digest = hashlib.new(kind, usedforsecurity=False)
        with open(folder.local(name), "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != expected:
            yield (
                f"{folder.where(name)} has {kind} sum {digest.hexdigest()}, but {listed_in} says "
                f"{expected}; {AGAIN}"
            )


def _wrong_tensors(file: TensorFile, bar: tqdm.tqdm) -> Iterator[str]:
    """What is wrong with the bytes of tensors, or with their values."""
    stored: dict[str | int, dict[StoredTensor, str]] = {}
    for name, tensor in file.tensors.items():
        stored.setdefault(tensor.record, {}).setdefault(tensor, name)
    # torch can be told to leave checksums out; then all of them are zero, or None.
    has_sums = any(file.records[str(record)].CRC for record in stored if record in file.records)
    for record, tensors in stored.items():
        info = file.records.get(str(record))
        size = info.file_size if info else max(tensor.nbytes for tensor in tensors)
        found = _crc(file, file.offset_of(record), size, bar)
        if info and has_sums and found != info.CRC:
            yield (
                f"{file.where}: the bytes of {', '.join(tensors.values())} are not those that were "
                f"written (CRC-32 {found:08x}, not {info.CRC:08x}); {AGAIN}"
            )
            continue
        for tensor, name in tensors.items():
            if what := _wrong_values(tensor):
                yield f"{file.where}: {name} {what}"


def _crc(file: TensorFile, offset: int, size: int, bar: tqdm.tqdm) -> int:
    """Reads and does not map: over a mapped page that a bad disk lost, a process is killed."""
    crc = 0
    with open(file.folder.local(file.name), "rb") as stream:
        stream.seek(offset)
        while size:
            block = stream.read(min(_BLOCK, size))
            if not block:
                raise InputError(f"{file.where} lacks its last {size:,} bytes; {AGAIN}")
            crc = zlib.crc32(block, crc)
            size -= len(block)
            bar.update(len(block))
    return crc


def _wrong_values(tensor: StoredTensor) -> str | None:
    if not math.prod(tensor.shape):
        return None
    if not tensor.shape:
        tensor = dataclasses.replace(tensor, shape=(1,), stride=(1,))
    count, first, any_set = 0, "", False
    rows = max(_NUMBERS // math.prod(tensor.shape[1:]), 1)
    for start in range(0, tensor.shape[0], rows):
        size = min(rows, tensor.shape[0] - start)
        at = tensor.start + start * tensor.stride[0]
        # Mapped by themselves, these rows leave the memory before the next ones come.
        block = dataclasses.replace(tensor, start=at, shape=(size, *tensor.shape[1:])).map()
        low, high = (float(value) for value in block.aminmax())  # NaN where there is one
        any_set = any_set or low != 0 or high != 0
        if not math.isfinite(low) or not math.isfinite(high):
            places = (~block.isfinite()).nonzero()
            row, *others = places[0].tolist()
            value = float(block[(row, *others)])
            first = first or f"{value} at {[start + row, *others]}"
            count += len(places)
    if count:
        return f"has {count:,} NaN or infinite value(s), the first is {first}"
    return None if any_set else f"holds nothing but zeros; {AGAIN}"


def _look_at_tokenizer(folder: Folder, checkpoint: Checkpoint | None) -> Finding:
    name = tokenizer_in(folder)
    if name is None:
        return Finding("note", f"there is no tokenizer in {folder.path}; give one to Llama.build")
    try:
        tokenizer = Tokenizer(folder.where(name))
        if checkpoint is not None:
            checkpoint.check_tokenizer(tokenizer)
    except (ValueError, OSError) as error:
        return _trouble(str(error))
    return _fine(name, f"{tokenizer.n_words:,} tokens")
