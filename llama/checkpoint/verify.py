"""`llama verify`: reads every byte of a checkpoint or an adapter and reports what is wrong.

Loading checks names, shapes and dtypes, and takes seconds. This also compares all bytes with the
checksums there are, and looks at all values:

    checksums.sha256, checklist.chk    of whole files: from `llama convert`, and from Meta
    a .pth or .bin file                CRC-32 of each tensor, written by torch
    a .safetensors or .json file       none, so a changed value can stay unnoticed
    any weights                        finite, and no tensor is all zeros

The report names the files that have no checksum. No checksum can show that a whole model was
replaced by another one, or that files were changed together with their list.
"""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tqdm
from cyclopts import Parameter

from llama import console
from llama.checkpoint import checksums
from llama.checkpoint.checksums import Checksum
from llama.checkpoint.opening import Checkpoint, open_checkpoint, read_tokenizer, tokenizer_in
from llama.errors import InputError, message
from llama.lora.adapter_files import open_adapter
from llama.quantization import bf12_files
from llama.storage.files import AGAIN, Folder, read_json, short_size
from llama.storage.pulled import open_folder
from llama.storage.sharding import Weight
from llama.storage.tensor_files import StoredTensor, TensorFile, open_tensors

# The weight files, by name, of a checkpoint that can't be opened: the first kind found.
_WEIGHTS = (r"consolidated\.\d+\.pth", r".*\.safetensors", r"(pytorch|adapter)_model.*\.bin")
_ADAPTER = "adapter_config.json"
_BLOCK_BYTES = 2**24  # read at a time


class Finding(NamedTuple):
    """A line of the report: of a file that is as it should be, a problem, or a remark."""

    kind: Literal["ok", "problem", "note"]
    text: str


def verify(
    path: str,
    /,
    *,
    base: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Reads all of a checkpoint or an adapter and reports the problems of each file.

    Raises InputError if there are any.

    Args:
        path: Folder of a checkpoint or a LoRA adapter, here or remote.
        base: An adapter's model; default: the folder its config names.
        as_json: Print one JSON object.
    """
    findings = []
    for kind, text in examine(path, base):
        findings.append({"kind": kind, "text": text})
        if not as_json:
            console.say(text if kind == "ok" else f"{kind}: {text}")
    count = sum(finding["kind"] == "problem" for finding in findings)
    if as_json:
        console.say(json.dumps({"path": path, "problems": count, "findings": findings}))
    if count:
        raise InputError(f"{count} problem{'s' * (count > 1)} in {path}")
    if not as_json:
        console.say(f"{path}: no problems found")


def examine(path: str, base: str | None = None) -> Iterator[Finding]:
    """The lines that `verify` prints, as they are found."""
    folder = open_folder(path)
    is_adapter = _ADAPTER in folder.names and "params.json" not in folder.names
    checkpoint, failure = None, ""
    try:
        if is_adapter:
            yield _check_adapter(folder, base)
        else:
            checkpoint = open_checkpoint(path)
            shape_file = checkpoint.params.removeprefix(folder.where(""))
            yield _ok(shape_file, f"{checkpoint.parameters:,} parameters")
    except (InputError, OSError) as error:
        failure = message(error)
        yield _problem(failure)
        yield Finding("note", "this can hide other problems: verify again when it is solved")
    if checkpoint is not None:
        weights = [file.name for file in checkpoint.files]
    else:
        kinds = ([n for n in folder.names if re.fullmatch(kind, n)] for kind in _WEIGHTS)
        weights = next(filter(None, kinds), [])
    listed, problems = checksums.read_checksums(folder)
    yield from map(_problem, problems)
    damaged, unprotected = False, []
    for name in dict.fromkeys([*weights, *listed]):
        named = folder.where(name) in failure
        if named and name not in folder.names:
            continue
        opened = {file.name: file for file in checkpoint.files} if checkpoint else {}
        problems, checks = _check_file(
            folder, name, name in weights, listed.get(name, []), opened.get(name)
        )
        damaged = damaged or bool(problems)
        yield from (_problem(text) for text in problems if text != failure)
        if not problems and not named:
            yield _ok(name, ", ".join(checks))
            if not any("matches" in check for check in checks):
                unprotected.append(name)
    if checkpoint is not None and not damaged:  # damage can look like another checkpoint's weights
        try:
            checkpoint.check_shards()
        except (InputError, OSError) as error:
            yield _problem(message(error))
    tokenizer = None if is_adapter else tokenizer_in(folder)
    if not is_adapter:
        yield _check_tokenizer(folder, checkpoint)
    settings = [n for n in folder.names if n.endswith(".json") or n == tokenizer]
    unprotected += [name for name in settings if name not in listed]
    if unprotected:
        names = ", ".join(dict.fromkeys(unprotected))
        yield Finding("note", f"no checksum of {names}: changed values can stay unnoticed")


def _ok(name: str, checks: str) -> Finding:
    return Finding("ok", f"{name}: ok, {checks}")


def _problem(text: str) -> Finding:
    return Finding("problem", " ".join(text.splitlines()))


def _check_adapter(folder: Folder, base: str | None) -> Finding:
    """Compares an adapter with its model, if that is known. Raises InputError."""
    config = read_json(folder.where(_ADAPTER))
    named = config.get("base_model_name_or_path")
    if base is None and isinstance(named, str) and Path(named).is_dir():
        base = named
    if base is None:
        return Finding(
            "note",
            f"{_ADAPTER}: its model {named!r} is no folder here; pass --base to check shapes",
        )
    adapter = open_adapter(folder.path, open_checkpoint(base).args)
    return _ok(_ADAPTER, f"adapts {len(adapter.layers)} layers of {base}")


def _check_file(
    folder: Folder,
    name: str,
    holds_weights: bool,
    expected: list[Checksum],
    opened: TensorFile | None,
) -> tuple[list[str], list[str]]:
    """The problems of a file, and what was found or checked: its size, its tensors, checksums.

    `opened` is the file as the checkpoint has it, where matrices in bf12 are single tensors.
    """
    where = folder.where(name)
    if name not in folder.names:
        return [f"{where} does not exist, but {expected[0].listed_in} lists it"], []
    problems, checks = [], [short_size(folder.size(name))]
    try:
        file = open_tensors(folder, name) if holds_weights else None
        total = folder.size(name) * (bool(file) + len(expected))
        with console.progress(total, f"Reading {name}") as bar:
            for listed, kind, listed_in in expected:
                found = checksums.digest(folder.local(name), kind, bar.update)
                if found != listed:
                    problems.append(
                        f"{where} has {kind} {found}, but {listed_in} lists {listed}; {AGAIN}"
                    )
            if file is not None:
                checks.append(f"{len(file.tensors):,} tensors")
                problems += _wrong_tensors(file, bar)
                if opened and not problems:
                    problems += _wrong_matrices(opened)
                if _has_crc(file):
                    checks.append("CRC-32 matches")
            checks += [f"{c.kind} matches {c.listed_in}" for c in expected]
    except (InputError, OSError) as error:
        text = message(error)
        return [text if where in text else f"{where} can't be read: {text}"], checks
    return problems, checks


def _has_crc(file: TensorFile) -> bool:
    """Whether a zip has checksums: torch can leave them out, and then all are zero or None."""
    return any(info.CRC for name, info in file.records.items() if "/data/" in name)


def _wrong_tensors(file: TensorFile, bar: tqdm.tqdm) -> Iterator[str]:
    """Problems with the bytes of tensors, or with their values."""
    stored: dict[str | int, dict[StoredTensor, str]] = {}
    for name, tensor in file.tensors.items():
        stored.setdefault(tensor.record, {}).setdefault(tensor, name)
    has_crc = _has_crc(file)
    for record, tensors in stored.items():
        info = file.records.get(str(record))
        size = info.file_size if info else max(tensor.nbytes for tensor in tensors)
        found = _crc(file, file.offset_of(record), size, bar)
        if info and has_crc and found != info.CRC:
            yield (
                f"{file.where}: the bytes of {', '.join(tensors.values())} have changed "
                f"(CRC-32 {found:08x}, not {info.CRC:08x}); {AGAIN}"
            )
            continue
        for tensor, name in tensors.items():
            if bf12_files.is_stored_part(name):
                continue  # `_wrong_matrices` looks at the values that they stand for
            if what := _wrong_values(tensor):
                yield f"{file.where}: {name} {what}"


def _wrong_matrices(file: TensorFile) -> Iterator[str]:
    """Problems with the values of matrices in bf12."""
    for name, tensor in file.tensors.items():
        if isinstance(tensor, bf12_files.Bf12Tensor) and (what := _wrong_values(tensor)):
            yield f"{file.where}: {name} {what}"


def _crc(file: TensorFile, offset: int, size: int, bar: tqdm.tqdm) -> int:
    """Reads instead of mapping: a mapped page that a bad disk can't read kills the process."""
    crc = 0
    with open(file.folder.local(file.name), "rb") as stream:
        stream.seek(offset)
        while size:
            block = stream.read(min(_BLOCK_BYTES, size))
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
    count, first, any_set, start = 0, "", False, 0
    everything = tuple(slice(0, size) for size in tensor.shape)
    for block in Weight.whole(tensor).blocks(everything, tensor.dtype):
        low, high = (float(value) for value in block.aminmax())  # NaN where there is one
        any_set = any_set or low != 0 or high != 0
        if not math.isfinite(low) or not math.isfinite(high):
            wrong = ~block.isfinite()
            row, *others = map(int, torch.unravel_index(wrong.byte().argmax(), block.shape))
            first = first or f"{float(block[(row, *others)])} at {[start + row, *others]}"
            count += int(wrong.sum())
        start += len(block)
    if count:
        return f"has {count:,} NaN or infinite value(s), the first is {first}"
    return None if any_set else f"is all zeros; {AGAIN}"


def _check_tokenizer(folder: Folder, checkpoint: Checkpoint | None) -> Finding:
    try:
        tokenizer = read_tokenizer(folder, checkpoint)
    except (InputError, OSError) as error:
        return _problem(message(error))
    if tokenizer is None:
        return _problem(
            f"{folder.path} has no tokenizer.model or tokenizer.json; copy it there, or pass "
            "tokenizer_path to Llama.build"
        )
    return _ok(Path(tokenizer.model_path).name, f"{tokenizer.n_words:,} tokens")
