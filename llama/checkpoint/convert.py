"""`llama convert` and `llama merge`: a checkpoint becomes another one.

    llama convert Llama-3.2-1B Llama-3.2-1B-hf --to hf
    llama convert Llama-3.3-70B-Instruct 70B-4 --shards 4
    llama convert Llama-3.1-8B 8B-int4 --quantize int4 --text held-out.txt
    llama convert Llama-3.1-8B 8B-bf12 --quantize bf12         # three quarters, not a bit lost
    llama merge Llama-3.2-1B polite Llama-3.2-1B-polite        # adds a LoRA adapter to the weights

Weights go from file to file in blocks of rows, so memory stays small. The new folder gets its name
when it is whole, with the checksums that `llama verify` compares.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts.types import PositiveInt
from torch import Tensor

from llama import console, distributed
from llama.args import is_linear, weight_shapes
from llama.chat_template import chat_template
from llama.checkpoint import checksums, huggingface_config
from llama.checkpoint.loading import load
from llama.checkpoint.meta_layout import write_params
from llama.checkpoint.opening import Checkpoint, open_checkpoint, read_tokenizer
from llama.dialog import default_tool_format
from llama.errors import InputError
from llama.lora.adapter_files import open_adapter
from llama.quantization import bf12_files, packed_formats
from llama.quantization.linear_layers import divergence, pack_blocks
from llama.storage import huggingface_names
from llama.storage.files import (
    Folder,
    atomic_path,
    expand,
    read_bytes,
    read_text,
    short_size,
    write_json,
)
from llama.storage.sharding import Region, Weight, share
from llama.storage.tensor_files import Entry, write_tensors
from llama.tokenization.tokenizer_json import write_tokenizer_json
from llama.tokenization.vocabulary import TiktokenVocabulary, write_tiktoken_ranks
from llama.tokenizer import Tokenizer

_WINDOW = 2048  # tokens that a comparison reads at a time, if the model's context is longer
_FILE_BYTES = 5e9  # default size of Hugging Face's files

Plan = dict[str, dict[str, Entry]]  # what goes into which file


def convert(
    source: str,
    destination: str,
    /,
    *,
    to: Literal["meta", "hf"] = "meta",
    shards: PositiveInt | None = None,
    dtype: str | None = None,
    quantize: Literal["bf12", "int8", "int4"] | None = None,
    text: str | None = None,
) -> None:
    """Writes the checkpoint in one folder into another.

    Args:
        source: Folder of a checkpoint in Meta's or Hugging Face's layout, here or remote.
        destination: Folder to make.
        to: The new layout: Meta's or Hugging Face's.
        shards: Number of weight files; default: 1 in Meta's layout, one per 5 GB in hf.
        dtype: bfloat16, float16 or float32; default: each weight keeps its own.
        quantize: Pack the linear layers for inference; only in Meta's layout. bf12 stores
            bfloat16 in 12 bits and rounds nothing; int8 and int4 round.
        text: With --quantize: UTF-8 file on which to measure the loss in quality.
    """
    wanted = None if dtype is None else distributed.select_dtype(torch.device("cpu"), dtype)
    if text is not None and not quantize:
        raise InputError("--text measures the cost of --quantize: pass both, or neither")
    if quantize and to != "meta":
        raise InputError(
            f"--to {to} --quantize {quantize}: packed weights exist in Meta's layout only; remove "
            "--to"
        )
    if quantize and wanted not in (None, torch.bfloat16):
        raise InputError(
            f"--dtype {dtype} --quantize {quantize}: unpacked weights are bfloat16 then; remove "
            "--dtype"
        )
    if quantize:
        wanted = torch.bfloat16
    target = new_folder(destination)
    checkpoint = open_checkpoint(source)
    if checkpoint.quantize:
        raise InputError(
            f"{source} has {checkpoint.quantize} weights; convert the model they were made from"
        )
    windows = None if text is None else _windows(text, checkpoint)
    write_checkpoint(checkpoint, target, to, shards, wanted, quantize)
    if quantize == "bf12":
        console.say(bf12_files.summary(open_checkpoint(target).files))
        if any(weight.dtype != torch.bfloat16 for weight in checkpoint.weights.values()):
            console.say(f"note: {source} is not all bfloat16; it was rounded to that, and no more")
    if windows:
        _report_cost(checkpoint, target, windows)
    elif quantize in packed_formats.ROUNDED:
        console.say("--text FILE measures the loss in quality, on a text of yours.")


def merge(base: str, adapter: str, destination: str, /, *, dtype: str | None = None) -> None:
    """Writes the checkpoint in one folder, with an adapter added to its weights, into another.

    Args:
        base: Folder of the checkpoint; the new one has its layout and number of shards.
        adapter: Folder of the adapter.
        destination: Folder to make.
        dtype: bfloat16, float16 or float32; default: each weight keeps its own.
    """
    target = new_folder(destination)
    wanted = None if dtype is None else distributed.select_dtype(torch.device("cpu"), dtype)
    checkpoint = open_checkpoint(base)
    if checkpoint.quantize:
        raise InputError(
            f"{base} has {checkpoint.quantize} weights, which can't be changed: merge into the "
            "model they were made from and convert the result with --quantize "
            f"{checkpoint.quantize}, or pass the adapter to Llama.build (adapter=)"
        )
    found = open_adapter(adapter, checkpoint.args)
    for layer, (a, b) in found.layers.items():
        name = f"{layer}.weight"
        old = checkpoint.weights[name]
        checkpoint.weights[name] = _Merged(
            old.shape, old.shards, old.head_dim, name=name, a=a, b=b, scale=found.scale
        )
    shards = len(checkpoint.files) if checkpoint.layout == "meta" else None
    write_checkpoint(checkpoint, target, checkpoint.layout, shards, wanted)


@dataclass(eq=False, kw_only=True)
class _Merged(Weight):
    """A weight plus scale * B A, computed in float32 block by block."""

    name: str
    a: Weight
    b: Weight
    scale: float

    def blocks(self, region: Region, dtype: torch.dtype, multiple: int = 1) -> Iterator[Tensor]:
        (rows, columns), cpu = region, torch.device("cpu")
        wide, r = torch.promote_types(self.dtype, torch.float32), slice(0, self.a.shape[0])
        start = rows.start
        for block in super().blocks(region, wide, math.lcm(multiple, self.b.head_dim or 1)):
            a = self.a.read((r, columns), cpu, wide)
            b = self.b.read((slice(start, start + len(block)), r), cpu, wide)
            merged = torch.addmm(block, b, a, alpha=self.scale).to(dtype)
            if not merged.isfinite().all():
                raise InputError(
                    f"{self.name} would have values that {dtype} can't hold; pass "
                    "another --dtype, such as bfloat16"
                )
            start += len(block)
            yield merged


def new_folder(destination: str) -> Path:
    """The path of a folder to make. Raises InputError, or FileExistsError if it has files."""
    if "://" in destination:
        raise InputError(
            f"{destination} is remote: convert to a folder on this machine, then copy it"
        )
    target = Path(expand(destination))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} already exists; pass the name of a new folder")
    return target


def write_checkpoint(
    checkpoint: Checkpoint,
    target: Path,
    to: str,
    shards: int | None,
    dtype: torch.dtype | None,
    quantize: str | None = None,
) -> None:
    """Writes a checkpoint, its tokenizer and checksums into a new folder, whole or not at all.

    Arguments as for `convert`. Raises InputError for shards that do not belong together, another
    model's tokenizer, and values that the dtype can't hold, and OSError for a full disk.
    """
    checkpoint.check_shards()
    tokenizer = read_tokenizer(checkpoint.folder, checkpoint)
    if to == "meta":
        plan = _plan_meta(checkpoint, shards, dtype, quantize)
    else:
        plan = _plan_hugging_face(checkpoint, shards, dtype)
    total = sum(e.nbytes for entries in plan.values() for e in dict.fromkeys(entries.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if total > free:
        raise OSError(
            f"{target} takes {short_size(total)}, and its disk has {short_size(free)} left; "
            "make room or convert to another disk"
        )
    with atomic_path(target) as folder:
        folder.mkdir()
        with console.progress(total, f"Converting {checkpoint.folder.path}") as bar:
            for name, entries in plan.items():
                write_tensors(folder / name, entries, bar.update)
        if to == "meta":
            _finish_meta(folder, checkpoint, tokenizer, quantize)
        else:
            _finish_hugging_face(folder, checkpoint, tokenizer, plan)
        with console.progress(total, "Computing checksums") as bar:
            checksums.write_checksums(folder, Folder(folder).names, bar.update)
    console.say(f"{target}: {len(plan)} file(s) of weights, {short_size(total)}")


def _entry(
    weight: Weight,
    region: Region,
    dtype: torch.dtype | None,
    name: str,
    head_dim: int | None = None,
) -> Entry:
    """A region of a weight, to be written; with `head_dim`, rows are in Hugging Face's order."""
    to = dtype or weight.dtype

    def blocks() -> Iterator[Tensor]:
        for rows in weight.blocks(region, to, head_dim or 1):
            if torch.finfo(to).max < torch.finfo(weight.dtype).max and rows.isinf().any():
                raise InputError(f"{name} has values that {to} can't hold; convert to bfloat16")
            yield huggingface_names.rows_from_meta(rows, head_dim) if head_dim else rows

    return Entry(to, tuple(cut.stop - cut.start for cut in region), blocks)


def _packed_entries(
    weight: Weight, region: Region, name: str, quantize: str
) -> Iterator[tuple[str, Entry]]:
    """A region of a matrix, packed: first the entry of its data, then that of its scales."""
    rows, columns = (cut.stop - cut.start for cut in region)
    scales: list[Tensor] = []  # computed with the data, written after it

    def data() -> Iterator[Tensor]:
        blocks = weight.blocks(region, torch.bfloat16, packed_formats.TILE)
        for packed in pack_blocks(blocks, packed_formats.bits(quantize, name), name):
            scales.append(packed.scales)
            yield packed.data

    def computed_scales() -> Iterator[Tensor]:
        while scales:
            yield scales.pop(0)

    shapes = packed_formats.packed_shapes(name, (rows, columns), quantize).items()
    for (key, shape), dtype, blocks in zip(
        shapes, packed_formats.DTYPES.values(), (data, computed_scales), strict=True
    ):
        yield key, Entry(dtype, shape, blocks)


def _plan_meta(
    checkpoint: Checkpoint, shards: int | None, dtype: torch.dtype | None, quantize: str | None
) -> Plan:
    count = shards or 1
    packed_formats.stored_shapes(checkpoint.args, quantize, count)
    plan: Plan = {}
    total = 2 * sum(map(math.prod, weight_shapes(checkpoint.args).values()))
    bar = console.progress(total * (quantize == "bf12"), "Counting escapes")
    for i in range(count):
        entries = plan[f"consolidated.{i:02d}.pth"] = {}
        made: dict[Weight, Entry] = {}
        in_bf12: dict[Weight, dict[str, Entry] | None] = {}
        for name, local in weight_shapes(checkpoint.args, count).items():
            weight = checkpoint.weights[name]
            region = share(weight.shape, local, i, count)
            if quantize == "bf12" and len(local) == 2:
                if weight not in in_bf12:
                    in_bf12[weight] = bf12_files.entries(weight, region, name, bar.update)
                if found := in_bf12[weight]:
                    entries.update(zip(bf12_files.tensor_names(name), found.values(), strict=True))
                    continue
            elif quantize and is_linear(name, local):
                entries.update(_packed_entries(weight, region, name, quantize))
                continue
            if weight not in made:
                made[weight] = _entry(weight, region, dtype, name)
            entries[name] = made[weight]
    return plan


def _plan_hugging_face(
    checkpoint: Checkpoint, shards: int | None, dtype: torch.dtype | None
) -> Plan:
    entries = {}
    for name, weight in checkpoint.weights.items():
        if name == "output.weight" and checkpoint.tied:
            continue
        everything = tuple(slice(0, size) for size in weight.shape)
        head_dim = checkpoint.args.head_dim if huggingface_names.has_rotary_rows(name) else None
        new_name = huggingface_names.weight_name(name)
        entries[new_name] = _entry(weight, everything, dtype, name, head_dim)
    total = sum(entry.nbytes for entry in entries.values())
    count = shards or math.ceil(total / _FILE_BYTES)
    if count > len(entries):
        raise InputError(f"--shards {count}: there are only {len(entries)} weights")
    if count == 1:
        return {"model.safetensors": entries}
    plan: Plan = {f"model-{i + 1:05d}-of-{count:05d}.safetensors": {} for i in range(count)}
    files, i, before = list(plan.values()), 0, 0
    for done, (name, entry) in enumerate(entries.items()):
        is_full = before * count >= total * (i + 1)
        needed = len(entries) - done < count - i  # or a later file stays empty
        i += bool(files[i]) and (is_full or needed)
        files[i][name] = entry
        before += entry.nbytes
    return plan


def _finish_meta(
    folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer | None, quantize: str | None
) -> None:
    params = write_params(checkpoint.args) | ({"quantize": quantize} if quantize else {})
    write_json(folder / "params.json", params)
    if tokenizer is None:
        return
    if tokenizer.n_words != checkpoint.args.vocab_size:
        raise InputError(
            f"{checkpoint.params} says vocab_size {checkpoint.args.vocab_size}, and its tokenizer "
            f"has {tokenizer.n_words} tokens; Meta's layout can't express a padded embedding"
        )
    if more := sorted(checkpoint.stop_ids - tokenizer.stop_tokens):
        console.say(f"note: Meta's layout can't express that tokens {more} also end an answer")
    vocabulary = tokenizer.vocabulary
    if tokenizer.model_path.endswith(".json") and isinstance(vocabulary, TiktokenVocabulary):
        write_tiktoken_ranks(vocabulary, folder / "tokenizer.model")
    else:
        (folder / "tokenizer.model").write_bytes(read_bytes(tokenizer.model_path))


def _finish_hugging_face(
    folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer | None, plan: Plan
) -> None:
    if len(plan) > 1:
        total = sum(entry.nbytes for entries in plan.values() for entry in entries.values())
        weight_map = {name: file for file, entries in plan.items() for name in entries}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    dtype = next(iter(next(iter(plan.values())).values())).dtype
    stop_ids = checkpoint.stop_ids | (tokenizer.stop_tokens if tokenizer else set())
    ends = {
        "bos_token_id": tokenizer.bos_id if tokenizer else None,
        "eos_token_id": sorted(stop_ids) or None,
    }
    config = huggingface_config.write_config(checkpoint.args, checkpoint.tied, dtype)
    write_json(folder / "config.json", config | ends)
    write_json(folder / "generation_config.json", ends)
    if tokenizer is None:
        return
    settings: dict[str, Any] = {"model_max_length": checkpoint.args.max_seq_len}
    vocabulary = tokenizer.vocabulary
    if isinstance(vocabulary, TiktokenVocabulary):
        path = folder / "tokenizer.json"
        write_tokenizer_json(path, vocabulary.ranks, vocabulary.special_tokens, vocabulary.pattern)
        settings |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "chat_template": chat_template(default_tool_format(checkpoint.args)),
        }
    else:
        (folder / "tokenizer.model").write_bytes(read_bytes(tokenizer.model_path))
        settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True}
        settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", settings)


def _windows(path: str, checkpoint: Checkpoint) -> list[list[int]]:
    """The tokens of a text in windows that the model reads at a time, each after begin_of_text."""
    tokenizer = read_tokenizer(checkpoint.folder, checkpoint)
    if tokenizer is None:
        raise InputError(f"--text {path}: {checkpoint.folder.path} has no tokenizer")
    ids = tokenizer.encode(read_text(path))
    if not ids:
        raise InputError(f"{path} is empty: pass a text to measure on")
    step = min(checkpoint.args.max_seq_len, _WINDOW) - 1
    return [[tokenizer.bos_id, *ids[i : i + step]] for i in range(0, len(ids), step)]


def _report_cost(checkpoint: Checkpoint, folder: Path, windows: list[list[int]]) -> None:
    packed = open_checkpoint(folder)
    models = [load(opened, device="cpu", dtype="bfloat16") for opened in (checkpoint, packed)]
    with console.progress(sum(map(len, windows)), "Comparing", unit=" tokens") as bar:

        def counted() -> Iterator[list[int]]:
            for window in windows:
                yield window
                bar.update(len(window))

        found = divergence(models[0], models[1], counted())
    for name, loss in (("bfloat16", found.reference), (str(packed.quantize), found.packed)):
        console.say(f"{name:<10}{loss:.4f} nats per token, perplexity {math.exp(loss):,.3f}")
    console.say(f"KL divergence {found.kl:.5f} nats per token, over {found.tokens:,} tokens")
